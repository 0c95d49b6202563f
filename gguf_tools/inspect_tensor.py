"""`python -m gguf_tools inspect-tensor FILE NAME [COUNT]`: statistics and first values of one tensor."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.terminal import Progress, readable_bytes, run, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_tools.reader import Tensor


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools inspect-tensor", description="Show a tensor's statistics and first values."
    )
    parser.add_argument("model", type=Path, help="a .gguf file, or one part of a split model")
    parser.add_argument("name", help="the tensor's name, for example blk.0.attn_q.weight")
    parser.add_argument("count", type=int, nargs="?", default=8, help="values to print (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _inspect(args))


@dataclass(slots=True)
class Statistics:
    """Figures over all values seen so far; mean and deviation are over the finite ones."""

    n_nan: int = 0
    n_inf: int = 0
    n_zero: int = 0
    n_finite: int = 0
    least: float = math.inf
    most: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances to the mean

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Counts more values in, by the merging rule for means and variances of Chan et al."""
        import numpy as np

        usable = np.isfinite(values)
        n_nan = int(np.count_nonzero(np.isnan(values)))
        self.n_nan += n_nan
        self.n_inf += values.size - int(np.count_nonzero(usable)) - n_nan
        finite = (values if usable.all() else values[usable]).astype(np.float64)
        if not finite.size:
            return
        self.n_zero += finite.size - int(np.count_nonzero(finite))
        self.least = min(self.least, float(finite.min()))
        self.most = max(self.most, float(finite.max()))
        mean = float(finite.mean())
        finite -= mean
        n_all = self.n_finite + finite.size
        gap = mean - self.mean
        self.squares += (
            float(np.einsum("i,i->", finite, finite)) + gap * gap * self.n_finite * finite.size / n_all
        )
        self.mean += gap * finite.size / n_all
        self.n_finite = n_all


def known_tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of this name.

    Raises: ValueError when there is none; the message names near ones.
    """
    if name in tensors:
        return tensors[name]
    from difflib import get_close_matches

    near = get_close_matches(name, tensors, 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`dump` lists the tensors"
    raise ValueError(f"the file has no tensor {name[:80]!r}; {hint}")


def _inspect(args: argparse.Namespace) -> int:
    import numpy as np

    from gguf_tools.chunks import DECODED_LEN, blocks, decoded, stored_chunks
    from gguf_tools.dequantize_compiled import WORTH_FROM
    from gguf_tools.split import open_split, part_paths

    if args.count < 0:
        raise ValueError(f"{args.count} values cannot be printed; give a COUNT of 0 or more")
    with open_split(part_paths(args.model)) as model:
        tensor = known_tensor(model.tensors, args.name)
        fmt = tensor.format
        n_values = math.prod(tensor.shape)
        print(f"name   {shown(tensor.name)}")
        print(f"type   {fmt.name}, {fmt.block_bytes} bytes for {fmt.block_len} values")
        print(f"shape  {' x '.join(map(str, tensor.shape))} (rows x columns), {n_values} values")
        print(f"bytes  {tensor.data.nbytes} ({readable_bytes(tensor.data.nbytes)}) from byte {tensor.offset}")
        statistics = Statistics()
        with Progress("reading", tensor.data.nbytes) as progress:
            for chunk in stored_chunks(tensor, DECODED_LEN // fmt.block_len * fmt.block_bytes):
                statistics.add(decoded(chunk, fmt, compiled=n_values >= WORTH_FROM))
                progress.add(chunk.nbytes)
        first = blocks(tensor)[: -(-args.count // fmt.block_len)]
        values = decoded(first, fmt)[: args.count] if args.count else np.empty(0)
    deviation = math.sqrt(statistics.squares / max(1, statistics.n_finite))
    if statistics.n_finite:
        print(f"min    {statistics.least:.8g}\nmax    {statistics.most:.8g}")
        print(f"mean   {statistics.mean:.8g}\nstd    {deviation:.8g}")
    print(f"zero   {statistics.n_zero}\nNaN    {statistics.n_nan}\ninf    {statistics.n_inf}")
    for start in range(0, len(values), 8):
        print(f"[{start}]  " + "  ".join(f"{value:.8g}" for value in values[start : start + 8]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
