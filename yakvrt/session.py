"""One KV slot and the tokens it holds: grown, cut, copied, saved and restored."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Sequence as IdSequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .draw import Draw, Drawn, Next
from .kvcache.slot_state import copy_slot
from .saved_session import open_session
from .session_file import save_session, session_bytes

if TYPE_CHECKING:
    from .backend import SlotValues
    from .kvcache.contract import KvMethod
    from .prefix_cache import Prefix, PrefixCache
    from .runner import Runner
    from .turns import Turns

Progress = Callable[[int, int], None]


class Session:
    """A sequence under evaluation: feed it tokens, get logits. Close it to free its slot.

    Sessions of one engine take turns, call by call, so threads may each use their own. Threads that share a
    session get their tokens in the order in which they come. Saving or restoring one holds no other up.
    """

    def __init__(
        self,
        runner: Runner,
        kv: KvMethod,
        kv_name: str,
        ctx_size: int,
        vocab_size: int,
        turns: Turns,
        origin: Callable[[], Mapping[str, str]],
    ) -> None:
        """kv_name: what the method is asked for by, which is that of a preset."""
        self._runner, self._kv, self._turns, self._vocab_size = runner, kv, turns, vocab_size
        self._kv_name = kv_name
        self._origin = origin
        self.ctx_size = ctx_size
        self._ids: list[int] = []
        self._steps_open = False
        self._slot: int | None = kv.open(ctx_size)

    @property
    def ids(self) -> IdSequence[int]:
        """The tokens whose keys and values are held."""
        return self._ids

    @property
    def kv(self) -> Mapping[str, Any]:
        """The KV method, its bytes, and the tokens held."""
        with self._turns.take():
            return {**self._kv.stats(), "method": self._kv_name, "n_tokens": len(self._ids)}

    def prefill(self, ids: IdSequence[int], progress: Progress | None = None) -> np.ndarray:
        """Appends tokens. Returns: float32 logits [V] of the last one.

        Raises: ValueError for no tokens, ids outside the vocabulary, or more tokens than still fit.
        """
        with self._turns.take(self):
            hidden = self._take_in(ids, progress, n_last=1)
            logits: np.ndarray = self._runner.logits(hidden)[0].copy()
        return logits

    def all_logits(self, ids: IdSequence[int]) -> Iterator[np.ndarray]:
        """Appends tokens. Yields: float32 logits [chunk, V] of all in order. Raises: as prefill()."""
        with self._turns.take(self):
            hidden = self._take_in(ids, n_last=len(ids))
        for start in range(0, len(ids), self._runner.logits_chunk):
            with self._turns.take(self):
                logits = self._runner.logits(hidden[start : start + self._runner.logits_chunk]).copy()
            yield logits

    def prefill_steps(self, ids: IdSequence[int]) -> Generator[None, None, np.ndarray]:
        """prefill() in many small steps, between which other sessions may decode, but take in no prompt.
        Closed early, the tokens are forgotten.

        Returns: float32 logits [V]. Raises: as prefill(), at the first step.
        """
        self._check(ids)
        held = len(self._ids)
        steps = self._runner.prefill_steps(self.slot, held, ids)
        self._steps_open = True
        try:
            while True:
                with self._turns.take(self):
                    try:
                        next(steps)
                    except StopIteration as end:
                        logits: np.ndarray = self._runner.logits(end.value)[0].copy()
                        self._ids.extend(int(token) for token in ids)
                        return logits
                yield
        finally:
            steps.close()
            self._steps_open = False
            if len(self._ids) == held:
                self.truncate(held)

    def decode(self, token: int) -> np.ndarray:
        """Appends one token. Returns: float32 logits [V]. Raises: as prefill()."""
        logits = self.next(token, None)
        assert not isinstance(logits, Drawn)
        return logits

    def next(self, token: int, draw: Draw | None) -> Next:
        """Appends one token. Returns: what was drawn, where the backend does that, or as decode()."""
        with self._turns.take(self):
            found = decode_together([self], [token], [draw])[0]
            return found if isinstance(found, Drawn) else found.copy()

    def truncate(self, n: int) -> None:
        """Forgets all but the first n tokens; a KV method that cannot keep these forgets more (see `ids`).

        Raises: ValueError when there are fewer.
        """
        with self._turns.take(self):
            if not 0 <= n <= len(self._ids):
                raise ValueError(f"cannot keep {n} tokens of {len(self._ids)}")
            del self._ids[self._kv.truncate(self.slot, len(self._ids), n) :]

    def keep_in(self, cache: PrefixCache) -> None:
        """Copies all that is known of the tokens into a cache of the engine's, if it has room."""
        with self._turns.take(self):
            cache.keep(self._ids, self._kv.state(self.slot, len(self._ids)))

    def load(self, prefix: Prefix) -> None:
        """Holds what a session that was kept in such a cache would after truncate() to the prefix, in place
        of its own tokens.
        """
        n = len(prefix.ids)
        with self._turns.take(self), self._replaced():
            prefix.fill(self._kv.state(self.slot, prefix.n_held))
            kept = n if n == prefix.n_held else self._kv.truncate(self.slot, prefix.n_held, n)
            self._ids.extend(prefix.ids[:kept])

    def copy_from(self, other: Session, n: int | None = None) -> None:
        """Holds what another session of the engine would hold after truncate() to n tokens, all by default,
        in place of its own; the two then go their own ways.

        Raises: ValueError when the other holds fewer, takes in a prompt, or is of another engine.
        """
        with self._turns.take(self, other):
            n = len(other.ids) if n is None else n
            if other._kv is not self._kv:
                raise ValueError("the sessions are of different engines; open both with the same one")
            for session in (self, other):
                session._check_still()
            if not 0 <= n <= len(other.ids):
                raise ValueError(f"cannot copy {n} tokens of {len(other.ids)}")
            if other is self:
                self.truncate(n)
                return
            source, target = other.slot, self.slot
            with self._replaced():
                n = copy_slot(self._kv, source, len(other.ids), target, n)
                self._ids.extend(other.ids[:n])

    def save(self, path: str | Path) -> None:
        """Writes the tokens and all that is known of them to a file, for restore(); nothing is ever half
        written. Of a GPU's memory there is a copy of one array at a time, of the host's none.

        Raises: ValueError or OSError, naming the file, when it cannot be written; ValueError while a prompt
            is taken in.
        """
        with self._turns.hold_still(self):
            self._check_still()
            with self._turns.take():
                state = self._kv.state(self.slot, len(self._ids))
            save_session(path, self._origin(), self._ids, state, self._read)

    def file_bytes(self) -> int:
        """Bytes of the file that save() would write."""
        with self._turns.take(self):
            state = self._kv.state(self.slot, len(self._ids))
        return session_bytes(self._origin(), self._ids, state)

    def restore(self, path: str | Path) -> None:
        """Holds what was saved, in place of its own; what follows is bit for bit what would have followed
        there. One array of the file is in memory at a time.

        Raises: ValueError for a file of another model or setting, damaged, or of more tokens than fit;
            OSError when it cannot be read. Nothing has changed then.
        """
        limits = {"ctx_size": self.ctx_size, "vocab_size": self._vocab_size}
        with self._turns.hold_still(self), open_session(path, self._origin(), **limits) as saved:
            with self._turns.take():
                state = self._kv.state(self.slot, len(saved.ids))
            saved.check(state)
            with self._replaced():
                saved.copy_to(state, self._write)
                self._ids.extend(saved.ids)

    def _read(self, values: SlotValues) -> np.ndarray:
        with self._turns.take():
            return np.asarray(values)

    def _write(self, target: SlotValues, values: np.ndarray) -> None:
        with self._turns.take():
            target[...] = values

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """Inside, the slot is empty and gets other content; it is left empty when that is interrupted."""
        with self._turns.take():
            del self._ids[self._kv.truncate(self.slot, len(self._ids), 0) :]
        try:
            yield
        except BaseException:
            with self._turns.take():
                self._ids.clear()
                self._kv.truncate(self.slot, 0, 0)
            raise

    def close(self) -> None:
        """Frees the slot; further calls do nothing."""
        with self._turns.take(self):
            if self._slot is not None:
                self._kv.release(self._slot)
                self._slot = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_in(self, ids: IdSequence[int], progress: Progress | None = None, *, n_last: int) -> np.ndarray:
        """The last layer's hidden states [n_last, E]. Tokens whose prefill is interrupted are forgotten."""
        self._check(ids)
        held = len(self._ids)
        try:
            hidden = self._runner.prefill(self.slot, held, ids, progress, n_last=n_last)
            self._ids.extend(int(token) for token in ids)
        finally:
            if len(self._ids) == held:
                self.truncate(held)
        return hidden

    @property
    def slot(self) -> int:
        """The KV slot. Raises: ValueError once closed."""
        if self._slot is None:
            raise ValueError("the session is closed; open a new one with Engine.session()")
        return self._slot

    def _check_still(self) -> None:
        if self._steps_open:
            raise ValueError("a prompt of this session is under way; finish its steps, or close them")

    def _check(self, ids: IdSequence[int]) -> None:
        if len(ids) == 0:
            raise ValueError("the prompt is empty; give at least one token")
        if len(self._ids) + len(ids) > self.ctx_size:
            raise ValueError(
                f"{len(self._ids) + len(ids)} tokens do not fit, the slot holds {self.ctx_size}; "
                "raise --ctx-size"
            )
        check_ids(ids, self._vocab_size)


def decode_together(
    sessions: IdSequence[Session], tokens: IdSequence[int], draws: IdSequence[Draw | None] = ()
) -> IdSequence[Next]:
    """Appends a token to each of several sessions of one engine.

    Returns: for each what was drawn, where it is asked for and the backend does that, or float32 logits [V],
    valid until the next call of any session. Raises: ValueError as prefill(); no session has changed then.
    """
    runner = sessions[0]._runner
    with sessions[0]._turns.take(*sessions):
        for session, token in zip(sessions, tokens, strict=True):
            session._check([token])
        positions = [len(session._ids) for session in sessions]
        found = runner.next([session.slot for session in sessions], positions, tokens, draws)
        for session, token in zip(sessions, tokens, strict=True):
            session._ids.append(int(token))
    return found


def check_ids(ids: IdSequence[int], vocab_size: int) -> None:
    """Raises: ValueError for ids outside the vocabulary."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong} is outside the vocabulary; ids run from 0 to {vocab_size - 1}")
