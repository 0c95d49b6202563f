"""`python -m yakvrt VERB`: runs the verb's module, the same code as `python -m yakvrt.VERB`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from yakvrt import __version__, terminal

VERBS = {
    "generate": "answer a prompt or continue a text",
    "chat": "talk with a model",
    "serve": "serve a model over HTTP: OpenAI's API and a chat page",
    "batch": "answer a file of requests, here or over a Ray cluster",
    "perplexity": "score a text, compare with saved log-probabilities",
    "eval": "quality and bytes of KV methods on whole tasks",
    "plan": "what a model and its KV cache will take, before anything is taken",
    "bench": "measure prompt and generation speed",
    "transfer": "measure copies and gathers of host memory, model a link",
    "tokenize": "text to token ids and back",
    "models": "list the models known by name",
    "pull": "fetch a model",
    "kernels": "compile the CUDA kernels ahead of time, report what they take",
}
# Of verbs whose name is that of a package.
MODULES = {
    "kernels": "cuda_kernels",
    "serve": "serve.verb",
    "batch": "batch.verb",
    "eval": "eval.verb",
    "transfer": "transfer.verb",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb named first and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    return terminal.run(lambda: _main(args))


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print("usage: python -m yakvrt VERB [flags]   (VERB --help lists a verb's flags)\n")
        print("\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items()))
        return 0 if args else 2
    if args[0] in ("--version", "version"):
        print(f"yakvrt {__version__}")
        return 0
    if args[0] not in VERBS:
        print(f"yakvrt: error: unknown verb {args[0]!r}; {_suggestion(args[0])}", file=sys.stderr)
        return 2
    from importlib import import_module

    code: int = import_module(f"yakvrt.{MODULES.get(args[0], args[0])}").main(args[1:])
    return code


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, VERBS, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}"


if __name__ == "__main__":
    raise SystemExit(main())
