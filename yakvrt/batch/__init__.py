"""Files of requests in OpenAI's batch format, answered here or over a Ray cluster: `yakvrt batch`."""
