"""Runs the verb: `python -m yakvrt.eval`."""

from __future__ import annotations

from yakvrt.eval.verb import main

if __name__ == "__main__":
    raise SystemExit(main())
