"""Runs the verb: `python -m yakvrt.batch`."""

from __future__ import annotations

from yakvrt.batch.verb import main

if __name__ == "__main__":
    raise SystemExit(main())
