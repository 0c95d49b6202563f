"""One thing that `yakvrt transfer --device cuda` times."""

from __future__ import annotations

from dataclasses import dataclass

GPU_TESTS = {
    "latency": "what launches, graphs, events, calls, waiting and one read of host memory take",
    "copy": "one piece of memory, by its size, kind of host memory and direction",
    "rows": "scattered rows, by five methods",
    "in-flight": "rows that the GPU reads, by blocks and the loads that a lane has under way",
    "write": "rows of the GPU that a kernel writes into pinned memory, and copies of as many bytes",
    "overlap": "copies and reads beside work on the GPU or copies to the host, and what they cost these",
    "pinning": "what touching, registering and allocating host memory takes",
    "pool": "scattered rows that the GPU reads from pools of several sizes",
    "numa": "copies of memory on each NUMA node of the host",
}
METHODS = {
    "zero-copy": "a kernel reads the rows where they lie",
    "gather+copy": "the host gathers them, one copy takes the block",
    "copy-batch": "one call for a batch of copies",
    "copy-rows": "a copy for each row",
    "copy-2d": "one copy of rows that lie evenly apart",
}
DIRECTIONS = ("h2d", "d2h", "both")
N_SETS = 8  # of ids of rows, which operations take in turn
FILLERS = ("arithmetic", "memory", "copy-d2h")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCase:
    """n_rows rows of row_bytes; what a test does not have is 0 or empty, `node` -1.

    `direction`: h2d, d2h, both at once, or d2d within the GPU. `memory`: one of MEMORIES. `grid`, `loads`:
    blocks of the kernel, and loads of 16 bytes that a lane has under way. `beside`: what also runs.
    """

    test: str
    method: str
    direction: str = ""
    memory: str = ""
    n_rows: int = 0
    row_bytes: int = 0
    row_order: str = ""
    row_offset: int = 0
    n_threads: int = 0
    grid: int = 0
    loads: int = 0
    beside: str = ""
    node: int = -1
    pool_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """That are moved, both directions together."""
        return self.n_rows * self.row_bytes * (2 if self.direction == "both" else 1)

    @property
    def host_bytes(self) -> int:
        """That it takes of the host's memory, beside what all take."""
        if self.pool_bytes:
            return self.pool_bytes + (self.n_bytes if self.method == "gather+copy" else 0)
        return 0 if self.direction == "d2d" else self.n_bytes

    @property
    def device_bytes(self) -> int:
        """The same of the GPU's."""
        if self.test == "pinning":
            return 0
        ids = 4 * N_SETS * self.n_rows if self.pool_bytes else 0
        return ids + (2 * self.n_bytes if self.direction == "d2d" else self.n_bytes)

    @property
    def name(self) -> str:
        """In a sentence."""
        named = self.test if self.method == self.test else f"{self.test} ({self.method})"
        return f"{named} of {self.n_rows} x {self.row_bytes} bytes" if self.n_rows else named
