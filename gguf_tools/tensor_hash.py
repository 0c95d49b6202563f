"""`python -m gguf_tools hash FILE`: hashes of every tensor and of all, and their check against a manifest.

A line is `ALGORITHM  HEX  FILE:TENSOR`, or `ALGORITHM  HEX  FILE` for all tensors together, as
llama-gguf-hash writes them. Only tensor data count: renaming or changing metadata changes no hash.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_tools.terminal import Progress, UsageError, run, shown

if TYPE_CHECKING:
    from gguf_tools.reader import Tensor

ALGORITHMS: Final = ("xxh64", "sha1", "sha256")
# Tensors that old converters added and that are no weights; llama-gguf-hash leaves them out too.
IGNORED: Final = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools hash", description="Hash the tensors of a model, or check them against a manifest."
    )
    parser.add_argument("model", type=Path, help="a .gguf file, or one part of a split model")
    for name in ALGORITHMS:
        parser.add_argument(f"--{name}", action="store_true", help=f"use {name}")
    parser.add_argument("--all", action="store_true", help="use all of them (sha256 alone is the default)")
    parser.add_argument("--no-layer", action="store_true", help="only the hash of all tensors together")
    parser.add_argument("-c", "--check", type=Path, metavar="MANIFEST", help="compare with these hashes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _hash(args))


def _hash(args: argparse.Namespace) -> int:
    from gguf_tools.split import open_split, part_paths

    chosen = [name for name in ALGORITHMS if args.all or getattr(args, name)]
    with open_split(part_paths(args.model)) as model:
        if args.check:
            from gguf_tools.manifest import check, read_manifest

            return check(read_manifest(args.check), model.tensors, chosen)
        label = shown(str(args.model))
        with Progress("hashing", n_counted(model.tensors)) as progress:
            for algorithm, digest, name in hashes(model.tensors, chosen or ["sha256"], progress):
                if name is None:
                    progress.say(f"{algorithm:<8}  {digest}  {label}")
                elif not args.no_layer:
                    progress.say(f"{algorithm:<8}  {digest}  {label}:{shown(name)}")
    return 0


def n_counted(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that are hashed."""
    return sum(tensor.data.nbytes for tensor in tensors.values() if not tensor.name.endswith(IGNORED))


def hashes(
    tensors: Mapping[str, Tensor], algorithms: Sequence[str], progress: Progress
) -> Iterator[tuple[str, str, str | None]]:
    """Algorithm, hex digest and tensor name of every tensor; last those over all (name None).

    Raises: UsageError when an algorithm is not to be had.
    """
    from gguf_tools.chunks import stored_chunks

    makers = {name: _maker(name) for name in algorithms}
    whole = {name: make() for name, make in makers.items()}
    for tensor in tensors.values():
        if tensor.name.endswith(IGNORED):
            continue
        single = {name: make() for name, make in makers.items()}
        for chunk in stored_chunks(tensor, 1 << 22):
            for running in (*single.values(), *whole.values()):
                running.update(chunk.data)
            progress.add(chunk.nbytes)
        for name, running in single.items():
            yield name, running.hexdigest(), tensor.name
    for name, running in whole.items():
        yield name, running.hexdigest(), None


def _maker(algorithm: str) -> Callable[[], Any]:
    from importlib import import_module

    try:
        maker: Callable[[], Any] = getattr(
            import_module("xxhash" if algorithm == "xxh64" else "hashlib"), algorithm
        )
    except ImportError:
        raise UsageError("xxh64 needs the xxhash package; pip install xxhash, or use --sha256") from None
    return maker


if __name__ == "__main__":
    raise SystemExit(main())
