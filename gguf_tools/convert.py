"""`python -m gguf_tools convert IN`: a Hugging Face directory to GGUF, or a GGUF file to such a directory."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.split_flags import add_split_flags, part_limits
from gguf_tools.terminal import Progress, UsageError, note, readable_bytes, run, shown

if TYPE_CHECKING:
    from gguf_tools.safetensors_writer import HubPlan
    from gguf_tools.writer import TensorPlan


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools convert",
        description="Convert a Hugging Face model directory to GGUF, or a GGUF file to such a directory "
        "(llama, mistral, qwen2, qwen3 and qwen3moe). The input decides the direction.",
    )
    parser.add_argument("input", type=Path, help="the model's directory, or a .gguf file")
    parser.add_argument(
        "--outfile", type=Path, metavar="PATH",
        help="the file (or directory) to write; default: NAME-TYPE.gguf in the input directory, or STEM-hf",
    )  # fmt: skip
    parser.add_argument(
        "--outtype", default="auto", metavar="TYPE",
        help="f32, f16, bf16, auto (the 16-bit type of the input), and for GGUF q8_0 or any type of quantize",
    )  # fmt: skip
    parser.add_argument("--model-name", metavar="NAME", help="general.name; default: the directory's name")
    parser.add_argument(
        "--pre-tokenizer", metavar="NAME", help="tokenizer.ggml.pre, where it is not recognised by itself"
    )
    parser.add_argument("--vocab-only", action="store_true", help="keys and tokenizer, no weights")
    add_split_flags(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="threads")
    parser.add_argument("--force", action="store_true", help="replace the output file")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written")
    parser.add_argument("--verbose", action="store_true", help="list every tensor")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _convert(args))


def _convert(args: argparse.Namespace) -> int:
    if not 1 <= args.threads <= 256:
        raise UsageError(f"--threads {args.threads} is out of range; give 1 to 256")
    if args.input.is_dir():
        return _to_gguf(args)
    if args.model_name or args.pre_tokenizer or part_limits(args):
        raise UsageError(
            "--model-name, --pre-tokenizer and the limits of parts are for GGUF output; leave them out"
        )
    return _to_hub(args)


def _to_gguf(args: argparse.Namespace) -> int:
    from gguf_tools.convert_to_gguf import plan_conversion, write_gguf
    from gguf_tools.file_copy import check_free
    from gguf_tools.part_writer import divide, part_files
    from gguf_tools.quantize_mix import FILE_TYPES, file_type
    from gguf_tools.reader import DEFAULT_ALIGNMENT

    try:
        mix = None if args.outtype == "auto" else file_type(args.outtype)
    except ValueError:
        choices = ", ".join(["auto", *map(str.lower, FILE_TYPES)])
        raise UsageError(f"--outtype {args.outtype!r} is not known; choose one of {choices}") from None
    conversion = plan_conversion(
        args.input,
        mix,
        name=args.model_name,
        pre_tokenizer=args.pre_tokenizer,
        vocab_only=args.vocab_only,
    )
    name = args.model_name or args.input.resolve().name
    kind = "vocab" if args.vocab_only else conversion.mix
    output = args.outfile or args.input / f"{name.replace('/', '-')}-{kind}.gguf"
    _list(args, conversion.plans)
    limits = part_limits(args)
    parts = divide(conversion.plans, DEFAULT_ALIGNMENT, limits) if limits else [conversion.plans]
    paths = part_files(output, len(parts)) if len(parts) > 1 else [output]
    if not args.dry_run:
        check_free(paths, args.force)
        with Progress("converting", conversion.source_bytes) as progress:
            write_gguf(conversion, paths, parts, args.threads, progress.add)
    keys = f"{len(conversion.metadata)} keys"
    for path, plans in zip(paths, parts, strict=True):
        _report(args, path, plans, keys if path == paths[0] else "a part")
    return 0


def _to_hub(args: argparse.Namespace) -> int:
    from gguf_tools.convert_to_hub import DTYPES, plan_hub_model, write_hub_model
    from gguf_tools.split import open_split, part_paths

    kind = None if args.outtype == "auto" else args.outtype.upper()
    if kind not in (None, *DTYPES):
        raise UsageError(f"--outtype {args.outtype!r} has no safetensors form; choose auto, f32, f16 or bf16")
    output = args.outfile or args.input.with_name(f"{args.input.stem}-hf")
    with open_split(part_paths(args.input)) as file:
        model = plan_hub_model(file, kind, vocab_only=args.vocab_only)
        if "tokenizer.json" not in model.files:
            note("the file has no vocabulary: the directory will have no tokenizer")
        _list(args, model.plans)
        if not args.dry_run:
            with Progress("converting", model.source_bytes) as progress:
                write_hub_model(model, output, args.threads, progress.add)
        _report(args, output, model.plans, ", ".join(model.files))
    return 0


def _list(args: argparse.Namespace, plans: Sequence[TensorPlan] | Sequence[HubPlan]) -> None:
    if not (args.verbose or args.dry_run):
        return
    width = max((len(shown(plan.name)) for plan in plans), default=0)
    for plan in plans:
        shape = "x".join(map(str, plan.shape))
        print(f"{shown(plan.name):<{width}}  {shape:>16}  {plan.format.name}")


def _report(
    args: argparse.Namespace, output: Path, plans: Sequence[TensorPlan] | Sequence[HubPlan], also: str
) -> None:
    counts = Counter(plan.format.name for plan in plans)
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "no tensors"
    size = readable_bytes(sum(plan.n_bytes for plan in plans))
    would = "would be written: " if args.dry_run else ""
    print(f"{would}{shown(str(output))}: {size} of tensors ({listed}), {also}")


if __name__ == "__main__":
    raise SystemExit(main())
