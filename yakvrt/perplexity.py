"""Scores a text by llama-perplexity's protocol: `python -m yakvrt.perplexity -f FILE`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yakvrt import terminal
from yakvrt.cli_arguments import add_model_arguments, add_prompt_arguments, at_least, load_engine
from yakvrt.cli_parsing import Parser, parse
from yakvrt.prompt_text import read_text
from yakvrt.terminal import UsageError

if TYPE_CHECKING:
    from yakvrt.kl_divergence import Doubles, Floats, Tokens
    from yakvrt.prompt_text import AnyTokenizer

DEFAULT_CTX = 512
# Rows scored at once: the vocabulary is wide, and whole chunks of float32 temporaries would cost a gigabyte.
BLOCK = 16


class ScoringSession(Protocol):
    """What scoring needs of a KV slot; engine.Session is one."""

    def truncate(self, n: int) -> None: ...

    def prefill(self, ids: Sequence[int]) -> Floats: ...

    def all_logits(self, ids: Sequence[int]) -> Iterator[Floats]: ...

    def decode(self, token: int) -> Floats: ...


def token_nll(logits: Floats, targets: Tokens) -> Doubles:
    """The negative log-likelihood of one target per row.

    Shapes: logits (T, V), targets (T,) -> (T,)
    """
    import numpy as np

    peak = logits.max(axis=1)
    total = np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64)
    hit = logits[np.arange(len(targets)), targets].astype(np.float64)
    nll: Doubles = np.log(total) + peak - hit
    return nll


def mean_nll(session: ScoringSession, ids: Sequence[int]) -> float:
    """The mean negative log-likelihood of ids[1:], each given all ids before it; no BOS is added.

    Raises: ValueError for fewer than two ids.
    """
    import numpy as np

    if len(ids) < 2:
        count = terminal.counted(len(ids), "id")
        raise ValueError(f"{count} cannot be scored, it takes at least 2; give a longer text")
    session.truncate(0)
    targets = np.asarray(ids[1:], np.int32)
    blocks = _blocks(session.all_logits(ids[:-1]))
    return math.fsum(float(token_nll(rows, targets[at : at + len(rows)]).sum()) for at, rows in blocks) / len(
        targets
    )


def _blocks(chunks: Iterator[Floats]) -> Iterator[tuple[int, Floats]]:
    """The rows in small blocks, each with the number of rows before it."""
    at = 0
    for chunk in chunks:
        for start in range(0, len(chunk), BLOCK):
            rows = chunk[start : start + BLOCK]
            yield at, rows
            at += len(rows)


def _decoded(session: ScoringSession, ids: Sequence[int]) -> Iterator[Floats]:
    """all_logits() of tokens that come one by one."""
    import numpy as np

    for start in range(0, len(ids), BLOCK):
        yield np.stack([session.decode(token) for token in ids[start : start + BLOCK]])


def window_blocks(
    session: ScoringSession, window: Tokens, *, decodes: bool
) -> Iterator[tuple[Tokens, Floats]]:
    """The scored targets of one window and the logits that predict them, in small blocks. A prompt attends to
    all that is before it, whatever the KV method: what a method chooses is told by tokens that are decoded.
    """
    ids: list[int] = window.tolist()
    first = len(ids) // 2
    session.truncate(0)
    session.prefill(ids[:first])
    scored = ids[first:-1]
    for at, rows in _blocks(_decoded(session, scored) if decodes else session.all_logits(scored)):
        yield window[first + 1 + at : first + 1 + at + len(rows)], rows


def cut_windows(tokenizer: AnyTokenizer, text: str, n_ctx: int, chunks: int) -> Tokens:
    """The text's tokens in windows of n_ctx; BOS takes the place of each first token if the model uses one.

    Shapes: (chunks, n_ctx)
    Raises: ValueError for a text of less than two windows.
    """
    import numpy as np

    ids = tokenizer.encode(text)
    if len(ids) < 2 * n_ctx:
        raise ValueError(
            f"the text has {terminal.counted(len(ids), 'token')}, a context of {n_ctx} takes at least "
            f"{2 * n_ctx}; "
            "give a longer text or lower --ctx-size"
        )
    n = len(ids) // n_ctx
    n = n if chunks < 0 else min(n, chunks)
    windows = np.asarray(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)
    if tokenizer.bos_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_id]:
        windows[:, 0] = tokenizer.bos_id
    return windows


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser(
        "perplexity",
        "Perplexity of a text over windows of --ctx-size tokens, the second half scored: in one pass, or with"
        " --kv (also full) decoded token by token, as what a KV method reads takes.",
    )
    add_prompt_arguments(parser, ids_flag=None)
    add = parser.add_argument_group("scoring").add_argument
    add(
        "--chunks",
        type=at_least(-1),
        default=-1,
        metavar="N",
        help="score only the first N windows (-1: all)",
    )
    add("--ppl-stride", type=int, choices=(0,), default=0, help="0, the only protocol there is")
    add(
        "--kl-divergence-base",
        "--save-all-logits",
        metavar="FILE",
        help="save all log-probabilities there; with --kl-divergence, compare with those saved there",
    )
    add("--kl-divergence", action="store_true", help="compare with the base; the text is in its file")
    add("--json", action="store_true", help="print one JSON object at the end")
    add_model_arguments(parser, ctx_size=DEFAULT_CTX)
    parser.set_defaults(ctx_size=None, kv=None)  # tells -c 512 and --kv full from none
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _perplexity(parse(build_parser(), argv)))


def _perplexity(args: argparse.Namespace) -> int:
    has_text = args.prompt is not None or args.file is not None
    if args.kl_divergence and args.kl_divergence_base is None:
        raise UsageError("--kl-divergence compares with a file; name it with --kl-divergence-base")
    if args.kl_divergence and has_text:
        raise UsageError("--kl-divergence takes the text from its base file; leave -p and -f out")
    if not (args.kl_divergence or has_text):
        raise UsageError("no text: give -f FILE, -p TEXT or -p - for stdin")
    if args.chunks == 0:
        raise UsageError("--chunks 0 scores nothing; give at least 1, or -1 for all")
    if args.ctx_size is not None and 0 < args.ctx_size < 4:
        raise UsageError(f"--ctx-size {args.ctx_size} leaves nothing to score; give at least 4")
    args.decodes, args.kv = args.kv is not None, args.kv or "full"
    result = _compare(args) if args.kl_divergence else _score(args)
    if args.json:
        import json

        print(json.dumps({"model": args.model, "kv": args.kv, **result}))
    return 0


def _score(args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of the text, its log-probabilities saved when asked for."""
    import numpy as np

    from yakvrt.kl_divergence import LogProbWriter, file_to_write, log_softmax, mean_error

    text = read_text(args) or ""
    if args.kl_divergence_base is not None:
        file_to_write(Path(args.kl_divergence_base))  # refused before the model is loaded
    args.ctx_size = DEFAULT_CTX if args.ctx_size is None else args.ctx_size
    with ExitStack() as held:
        engine = held.enter_context(load_engine(args))
        n_ctx = args.ctx_size or engine.ctx_size
        windows = cut_windows(engine.tokenizer, text, n_ctx, args.chunks)
        saved = None
        if args.kl_divergence_base is not None:
            path = Path(args.kl_divergence_base)
            saved = held.enter_context(LogProbWriter(path, windows, engine.config.vocab_size))
        session = engine.session()
        held.callback(session.close)
        terminal.note(f"perplexity over {terminal.counted(len(windows), 'chunk')} of {n_ctx} tokens")
        scores: list[Doubles] = []
        for number, window in enumerate(windows, 1):
            for targets, rows in window_blocks(session, window, decodes=args.decodes):
                scores.append(token_nll(rows, targets))
                if saved is not None:
                    saved.write(log_softmax(rows))
            running = math.exp(np.concatenate(scores).mean())
            if not args.json:
                print(f"[{number}]{running:.4f},", end="", flush=True)
    nll, error = mean_error(np.concatenate(scores))
    ppl = math.exp(nll)
    if not args.json:
        print(f"\nFinal estimate: PPL = {ppl:.4f} +/- {ppl * error:.5f}")
    return {
        "ppl": ppl,
        "ppl_stderr": ppl * error,
        "nll": nll,
        "n_ctx": n_ctx,
        "n_chunks": len(windows),
        "n_tokens": sum(map(len, scores)),
    }


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    """The distance of this model's log-probabilities from the saved ones."""
    from yakvrt.kl_divergence import CHUNK_TITLE, Comparison, SavedLogProbs, chunk_line, log_softmax, report

    base = SavedLogProbs(Path(args.kl_divergence_base))
    if args.ctx_size not in (None, base.n_ctx):
        raise UsageError(
            f"--ctx-size {args.ctx_size} contradicts {args.kl_divergence_base}, whose chunks have "
            f"{base.n_ctx} tokens; leave --ctx-size out"
        )
    args.ctx_size = base.n_ctx
    windows = base.windows if args.chunks < 0 else base.windows[: args.chunks]
    with ExitStack() as held:
        engine = held.enter_context(load_engine(args))
        if engine.config.vocab_size != base.n_vocab:
            raise ValueError(
                f"the base file has a vocabulary of {base.n_vocab}, this model {engine.config.vocab_size}; "
                "compare models with the same tokenizer"
            )
        session = engine.session()
        held.callback(session.close)
        comparison = Comparison.empty()
        if not args.json:
            print(CHUNK_TITLE)
        for number, window in enumerate(windows):
            rows, at = base.rows(number), 0
            for targets, logits in window_blocks(session, window, decodes=args.decodes):
                comparison.add(log_softmax(logits), rows[at : at + len(logits)], targets)
                at += len(logits)
            if not args.json:
                print(chunk_line(number + 1, comparison.statistics()), flush=True)
    stats = comparison.statistics()
    if not args.json:
        print(f"\n{report(stats)}")
    return {**stats, "n_ctx": base.n_ctx, "n_chunks": len(windows)}


if __name__ == "__main__":
    raise SystemExit(main())
