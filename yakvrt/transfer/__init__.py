"""How fast rows move: copies and gathers timed where they run, `python -m yakvrt transfer`."""
