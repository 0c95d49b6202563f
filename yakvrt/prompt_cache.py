"""A prompt's keys and values kept in a file between runs, under llama.cpp's flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yakvrt.terminal import UsageError, counted, note

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.sequence import Sequence
    from yakvrt.session import Session


def add_prompt_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of --prompt-cache."""
    add = parser.add_argument_group("prompt cache").add_argument
    add(
        "--prompt-cache",
        metavar="FNAME",
        help="keep the KV cache of the prompt in this file; another run reads only what its prompt does not "
        "share with it, then keeps its own",
    )
    add("--prompt-cache-all", action="store_true", help="keep that of the answer as well")
    add("--prompt-cache-ro", action="store_true", help="use the file, do not change it")


class PromptCache:
    """The file of --prompt-cache, or none.

    Raises: UsageError for flags that make no sense; ValueError or OSError when the file could not be written.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._path: str | None = args.prompt_cache
        self._all, self._fixed = args.prompt_cache_all, args.prompt_cache_ro
        if self._all and self._fixed:
            raise UsageError("--prompt-cache-all changes the file and --prompt-cache-ro does not; give one")
        if self._path is None:
            if self._all or self._fixed:
                flag = "--prompt-cache-all" if self._all else "--prompt-cache-ro"
                raise UsageError(f"{flag} says how a file is used, which --prompt-cache FNAME names; add it")
        elif not self._fixed:
            from yakvrt.session_file import check_writable

            check_writable(self._path)  # before a long prompt is read in vain

    def session(self, engine: Engine) -> Session:
        """A session that holds what the file does. Raises: ValueError for a file that does not fit."""
        session = engine.session()
        if self._path is None:
            return session
        try:
            session.restore(self._path)
        except FileNotFoundError:
            if self._fixed:
                note(f"{self._path} is not there and --prompt-cache-ro makes none")
        except BaseException:
            session.close()
            raise
        return session

    def keep_prompt(self, session: Session, sequence: Sequence) -> None:
        """Takes in the prompt, and saves it where the file does not hold all of it yet."""
        held = list(session.ids)
        sequence.prefill()
        if self._path is None:
            return
        if held:
            reused = counted(int(sequence.timings["cache_n"]), "token")
            note(f"reused {reused} of {len(held)} in {self._path}")
        if held[: len(sequence.prompt_ids)] != sequence.prompt_ids and not self._all:
            self._save(session)

    def keep_all(self, session: Session, sequence: Sequence) -> None:
        """Saves prompt and answer, also an interrupted one, where that was asked for."""
        if self._all and len(session.ids) >= len(sequence.prompt_ids):
            self._save(session)

    def _save(self, session: Session) -> None:
        if self._path is None or self._fixed:
            return
        session.save(self._path)
        size = Path(self._path).stat().st_size
        note(f"saved {counted(len(session.ids), 'token')} in {self._path} ({size / 1e6:.1f} MB)")
