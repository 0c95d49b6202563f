"""Runs the verb: `python -m yakvrt.serve`."""

from __future__ import annotations

from yakvrt.serve.verb import main

if __name__ == "__main__":
    raise SystemExit(main())
