"""Quality of KV methods on whole tasks: `python -m yakvrt eval`."""
