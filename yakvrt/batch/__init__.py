"""Files of requests in OpenAI's batch format, answered in one process or over a Ray cluster: `yakvrt batch`."""
