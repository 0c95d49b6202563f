"""Runs the verb: `python -m yakvrt.transfer`."""

from __future__ import annotations

from yakvrt.transfer.verb import main

if __name__ == "__main__":
    raise SystemExit(main())
