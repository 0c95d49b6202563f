"""`python -m gguf_tools quantize IN [OUT] TYPE [NTHREADS]`: stores a model's weights in another type."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_tools.terminal import Progress, UsageError, readable_bytes, run, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_tools.formats import Format
    from gguf_tools.meta_value import MetaValue
    from gguf_tools.metadata import Metadata
    from gguf_tools.quantize_mix import MixOptions
    from gguf_tools.quantize_stream import Workers
    from gguf_tools.reader import GGUFFile, Tensor
    from gguf_tools.split import SplitFile
    from gguf_tools.writer import TensorPlan

QUANTIZATION_VERSION: Final = 2
MAX_THREADS: Final = 256
EPILOG: Final = """Types: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S
Q5_K_M Q6_K, or their numbers in llama.cpp; Q3_K, Q4_K and Q5_K mean the _M mixes; COPY keeps every type."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools quantize",
        usage="gguf_tools quantize [flags] IN [OUT] TYPE [NTHREADS]",
        description="Store the weights of a GGUF file in another type.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "words", nargs="+", metavar="IN [OUT] TYPE [NTHREADS]",
        help="OUT defaults to ggml-model-TYPE.gguf beside IN; NTHREADS to the number of processors",
    )  # fmt: skip
    parser.add_argument(
        "--tensor-type", action="append", default=[], metavar="REGEX=TYPE",
        help="the type of the tensors whose name the pattern finds; the first match counts",
    )  # fmt: skip
    parser.add_argument("--output-tensor-type", metavar="TYPE", help="the type of output.weight")
    parser.add_argument("--token-embedding-type", metavar="TYPE", help="the type of token_embd.weight")
    parser.add_argument("--pure", action="store_true", help="no mix: all weights get the one type")
    parser.add_argument("--leave-output-tensor", action="store_true", help="keep output.weight as it is")
    parser.add_argument(
        "--allow-requantize", action="store_true",
        help="accept weights that are quantised already (quality suffers)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-split", action="store_true", help="write as many parts as IN has, OUT-00001-of-0000N.gguf"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT")
    parser.add_argument("--dry-run", action="store_true", help="show types and sizes, write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    # Flags may stand between the words, as in llama-quantize.
    args = build_parser().parse_intermixed_args(argv)
    return run(lambda: _quantize_file(args))


def _quantize_file(args: argparse.Namespace) -> int:
    from gguf_tools.file_copy import check_free
    from gguf_tools.part_writer import part_files, write_parts
    from gguf_tools.quantize_mix import FILE_TYPES, model_facts, tensor_types
    from gguf_tools.quantize_stream import encoding_workers
    from gguf_tools.split import open_split, part_paths
    from gguf_tools.writer import GGUFWriter

    source, output, mix, n_threads = _words(args.words)
    options = _options(args)
    with open_split(part_paths(source)) as file:
        if mix is None:
            types = {name: tensor.format.name for name, tensor in file.tensors.items()}
        else:
            described = [(t.name, t.shape, t.format.name) for t in file.tensors.values()]
            types = tensor_types(described, model_facts(file.metadata), mix, options)
        plans = _plans(file, types, args.allow_requantize)
        if args.dry_run:
            _show(file, plans)
            return 0
        parts = _parts(file, plans) if args.keep_split else [plans]
        paths = part_files(output, len(parts)) if len(parts) > 1 else [output]
        check_free(paths, args.force)
        inputs = part_paths(source)
        if same := [out for out in paths for given in inputs if out.exists() and out.samefile(given)]:
            raise UsageError(f"{same[0]} is the input too; name another output file")
        values = _metadata(file.metadata, None if mix is None else FILE_TYPES[mix][0])
        with (
            Progress("quantizing", sum(t.data.nbytes for t in file.tensors.values())) as progress,
            encoding_workers(n_threads, _work(file, plans)) as workers,
        ):

            def write(writer: GGUFWriter, plan: TensorPlan) -> None:
                pieces = _pieces(file.tensors[plan.name], plan, workers, progress.add)
                writer.write_tensor(plan.name, pieces)

            if len(parts) > 1:
                write_parts(paths, parts, values, None, write)
            else:
                with GGUFWriter(output, values, plans) as writer:
                    for plan in plans:
                        write(writer, plan)
        before = sum(t.data.nbytes for t in file.tensors.values())
    after = sum(plan.n_bytes for plan in plans)
    counts = Counter(plan.format.name for plan in plans)
    print(f"{shown(str(paths[0]))}: {_sizes(before, after)}; {_listed(counts)}")
    return 0


def _words(words: Sequence[str]) -> tuple[Path, Path, str | None, int]:
    """IN, OUT, the mix (None for COPY) and the number of threads."""
    from gguf_tools.quantize_mix import file_type

    rest = list(words)
    if len(rest) not in (2, 3, 4):
        raise UsageError(f"{len(rest)} words given; the command is quantize IN [OUT] TYPE [NTHREADS]")
    source = Path(rest.pop(0))
    # As in llama-quantize, the second word is the type where it names one.
    output = None if _is_type(rest[0]) else Path(rest.pop(0))
    if not rest or len(rest) > 2:
        raise UsageError(f"{words[1]!r} is no type and no type follows it; the command is IN [OUT] TYPE")
    try:
        mix = None if rest[0].upper() == "COPY" else file_type(rest[0])
    except ValueError as error:
        raise UsageError(str(error)) from None
    n_threads = os.cpu_count() or 1
    if len(rest) == 2:
        if not rest[1].isdecimal() or not 1 <= int(rest[1]) <= MAX_THREADS:
            raise UsageError(f"{rest[1]!r} is not a number of threads; give 1 to {MAX_THREADS}")
        n_threads = int(rest[1])
    return source, output or source.with_name(f"ggml-model-{mix or 'COPY'}.gguf"), mix, n_threads


def _is_type(word: str) -> bool:
    from gguf_tools.quantize_mix import file_type

    try:
        return word.upper() == "COPY" or bool(file_type(word))
    except ValueError:
        return False


def _options(args: argparse.Namespace) -> MixOptions:
    from gguf_tools.quantize_mix import MixOptions

    overrides = []
    for text in args.tensor_type:
        pattern, equals, kind = text.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"--tensor-type {text!r} is not REGEX=TYPE")
        try:
            overrides.append((re.compile(pattern), _tensor_type("--tensor-type", kind)))
        except re.error as error:
            raise UsageError(f"--tensor-type {pattern!r} is not a regular expression ({error})") from None
    output, embedding = args.output_tensor_type, args.token_embedding_type
    return MixOptions(
        overrides=tuple(overrides),
        output_type=_tensor_type("--output-tensor-type", output) if output else None,
        embedding_type=_tensor_type("--token-embedding-type", embedding) if embedding else None,
        pure=args.pure,
        leave_output=args.leave_output_tensor,
    )


def _tensor_type(flag: str, name: str) -> str:
    from gguf_tools.quantize import WRITABLE

    if name.upper() not in WRITABLE:
        raise UsageError(f"{flag}: {name[:80]!r} is no type that can be written; use {', '.join(WRITABLE)}")
    return name.upper()


def _plans(file: GGUFFile | SplitFile, types: Mapping[str, str], allow_requantize: bool) -> list[TensorPlan]:
    from gguf_tools.formats import FORMATS
    from gguf_tools.writer import TensorPlan

    for name, kind in types.items():
        present = file.tensors[name].format
        if kind != present.name and present.block_len > 1 and not allow_requantize:
            raise ValueError(
                f"tensor {name[:80]!r} is quantised already ({present.name}); start from F16 or F32 weights, "
                "or add --allow-requantize and accept the loss"
            )
    return [TensorPlan(t.name, t.shape, FORMATS[types[t.name]]) for t in file.tensors.values()]


def _metadata(metadata: Metadata, number: int | None) -> dict[str, MetaValue]:
    """All keys byte for byte, but for the two that quantising sets and those of a split file."""
    from gguf_tools.meta_value import ValueType, scalar, stored_values

    values = {key: value for key, value in stored_values(metadata).items() if not key.startswith("split.")}
    if number is not None:
        values["general.quantization_version"] = scalar(ValueType.UINT32, QUANTIZATION_VERSION)
        values["general.file_type"] = scalar(ValueType.UINT32, number)
    return values


def _parts(file: GGUFFile | SplitFile, plans: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    """The tensors as they are shared out among the input's files."""
    from gguf_tools.split import SplitFile

    parts = file.parts if isinstance(file, SplitFile) else (file,)
    return [[plan for plan in plans if plan.name in part.tensors] for part in parts]


def _work(file: GGUFFile | SplitFile, plans: Sequence[TensorPlan]) -> Iterator[tuple[Format, Format, int]]:
    """What has to be decoded and encoded, for encoding_workers."""
    for plan in plans:
        source = file.tensors[plan.name].format
        if source is not plan.format:
            yield source, plan.format, math.prod(plan.shape)


def _pieces(
    tensor: Tensor, plan: TensorPlan, workers: Workers, count: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    from gguf_tools.chunks import stored_chunks
    from gguf_tools.quantize_stream import encoded

    if plan.format is tensor.format:
        for chunk in stored_chunks(tensor):
            yield chunk
            count(chunk.nbytes)
        return
    for piece in encoded(tensor.name, tensor.data, tensor.format, plan.format.name, workers):
        yield piece
        count(tensor.data.nbytes * piece.nbytes // plan.n_bytes)
    tensor.release()


def _show(file: GGUFFile | SplitFile, plans: Sequence[TensorPlan]) -> None:
    width = max((len(shown(plan.name)) for plan in plans), default=0)
    for plan in plans:
        tensor = file.tensors[plan.name]
        change = f"{tensor.format.name} -> {plan.format.name}"
        if plan.format is tensor.format:
            change = tensor.format.name
        shape = "x".join(map(str, plan.shape))
        print(f"{shown(plan.name):<{width}}  {shape:>16}  {change:<14} {readable_bytes(plan.n_bytes):>11}")
    before = sum(t.data.nbytes for t in file.tensors.values())
    print(_sizes(before, sum(plan.n_bytes for plan in plans)))
    print(_listed(Counter(plan.format.name for plan in plans)))


def _sizes(before: int, after: int) -> str:
    return f"{readable_bytes(before)} of tensors became {readable_bytes(after)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


if __name__ == "__main__":
    raise SystemExit(main())
