"""An OpenAI-compatible HTTP server over a scheduler: `python -m yakvrt serve`."""
