"""`python -m gguf_tools VERB`: runs the verb's module; nothing else is imported before."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# verb: (module, what it does)
VERBS = {
    "dump": ("dump", "show metadata and tensors (text, JSON, Markdown)"),
    "get": ("get", "print one metadata value"),
    "set-metadata": ("set_metadata", "change a number in place"),
    "new-metadata": ("new_metadata", "copy a file with other metadata"),
    "inspect-tensor": ("inspect_tensor", "statistics and first values of one tensor"),
    "hash": ("tensor_hash", "hash every tensor and the whole, check a manifest"),
    "split": ("split_file", "cut a file into parts"),
    "merge": ("merge", "join the parts of a file"),
    "compare": ("compare", "differences of two models, tensor by tensor"),
    "verify": ("verify", "check a file's structure and values"),
    "convert": ("convert", "Hugging Face directory to GGUF and back"),
    "quantize": ("quantize_file", "store the weights in another type"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb named first and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print("usage: python -m gguf_tools VERB [flags]   (VERB --help lists a verb's flags)\n")
        print("\n".join(f"  {verb:<16}{text}" for verb, (_, text) in VERBS.items()))
        return 0 if args else 2
    if args[0] not in VERBS:
        print(f"gguf_tools: error: unknown verb {args[0]!r}; {_suggestion(args[0])}", file=sys.stderr)
        return 2
    from importlib import import_module

    code: int = import_module(f"gguf_tools.{VERBS[args[0]][0]}").main(args[1:])
    return code


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, VERBS, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}"


if __name__ == "__main__":
    raise SystemExit(main())
