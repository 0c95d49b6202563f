"""What a method's decode steps read and moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .contract import KvSetting, Pools


@dataclass(slots=True)
class Counters:
    """Totals since the method was built, over all layers, slots and decode steps.

    A row is K and V of one token and one head: a KV head, or a query head where a method chooses for each.
    rows_read: rows that attention read. rows_asked: those of them that rest on the host, found on the device
    or not. rows_hit: those found on the device since an earlier step fetched them.
    """

    n_layers: int
    steps: int = 0
    rows_read: int = 0
    rows_asked: int = 0
    rows_hit: int = 0
    gross_bytes: int = 0
    moved_bytes: int = 0

    def add(self, layer: int, *, read: int, asked: int, hit: int, row_bytes: int) -> None:
        """One token in one layer; row_bytes is what the link carries for a row.

        Bytes: gross = asked * row_bytes, moved = (asked - hit) * row_bytes.
        """
        self.rows_hit += hit
        gross, moved = asked * row_bytes, (asked - hit) * row_bytes
        self.add_bytes(layer, read=read, asked=asked, gross=gross, moved=moved)

    def add_bytes(self, layer: int, *, read: int, asked: int, gross: int, moved: int) -> None:
        """One token in one layer, where the bytes do not follow from the number of rows."""
        self.steps += layer == self.n_layers - 1
        self.rows_read += read
        self.rows_asked += asked
        self.gross_bytes += gross
        self.moved_bytes += moved


def method_stats(
    method: str,
    setting: KvSetting,
    pools: Pools,
    counters: Counters,
    device_bytes_per_token: float,
    host_bytes_per_token: float,
) -> Mapping[str, float | str]:
    """What every method reports. Bytes per token count what grows with the prompt, not what is fixed.

    `pools` are those of one slot; `steps` are tokens decoded, the counts are totals over them.
    """
    return {
        "method": method,
        "type": setting.kind,
        "ctx_size": setting.ctx_size,
        "n_slots": setting.n_slots,
        "bytes": setting.n_slots * pools.slot_bytes + sum(pools.transient.values()),
        "gross_bytes": counters.gross_bytes,
        "moved_bytes": counters.moved_bytes,
        "rows_read": counters.rows_read,
        "hit_rate": counters.rows_hit / counters.rows_asked if counters.rows_asked else 0.0,
        "device_bytes_per_token": device_bytes_per_token,
        "host_bytes_per_token": host_bytes_per_token,
        "steps": counters.steps,
    }
