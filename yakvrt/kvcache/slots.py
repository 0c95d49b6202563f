"""Which slots are free."""

from __future__ import annotations

from .contract import KvSetting


class SlotList:
    """The slots of one method, all of ctx_size tokens."""

    def __init__(self, setting: KvSetting) -> None:
        self._n_slots, self._ctx_size = setting.n_slots, setting.ctx_size
        self._free = list(range(setting.n_slots))[::-1]

    def take(self, n_tokens: int) -> int:
        """Raises: ValueError when n_tokens can never fit, RuntimeError when no slot is free."""
        if n_tokens > self._ctx_size:
            raise ValueError(f"{n_tokens} tokens asked for, a slot holds {self._ctx_size}; raise --ctx-size")
        if not self._free:
            raise RuntimeError(f"all {self._n_slots} slots are in use; close a session or raise n_slots")
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
