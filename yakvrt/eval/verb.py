"""Scores KV methods on whole tasks: `python -m yakvrt eval --task T --kv A,B -o DIR`, then `--report DIR`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yakvrt import __version__, terminal
from yakvrt.cli_arguments import add_weight_arguments, at_least, cache_type, load_engine
from yakvrt.cli_parsing import Parser, kind, parse
from yakvrt.eval.method_specs import DEFAULT_BUDGET, DEFAULT_METHODS, MethodSpec, method_specs
from yakvrt.terminal import UsageError
from yakvrt.value_lists import argument, words

if TYPE_CHECKING:
    from yakvrt.eval.evaluation import Question
    from yakvrt.eval.sample import Task


class ListTasks(argparse.Action):
    """Prints the tasks and their options, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from yakvrt.eval.tasks import TASKS

        for entry in TASKS.values():
            print(f"{entry.name} ({entry.intensity} intensity): {entry.about}")
            if entry.data:
                print(f"    --data {entry.name}=DIR: {entry.data}")
            for option in entry.options:
                print(f"    {option.name}={option.default}: {option.help}")
        parser.exit()


def _shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser(
        "eval",
        "Answer a task's samples with several KV methods over one prefill, at equal bytes: scores, and how "
        "far next tokens on the gold answer are from full attention's. A run that was broken off goes on.",
    )
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--task",
        action="append",
        metavar="NAME[:K=V;...]",
        help="a task and its options, as niah:lengths=4k,8k;repeats=2; repeatable",
    )
    add("--list-tasks", action=ListTasks, nargs=0, help="print the tasks with their options and exit")
    add(
        "--data",
        action="append",
        default=[],
        metavar="[TASK=]DIR",
        help="where a task's files lie; repeatable",
    )
    add(
        "--kv",
        type=argument(words),
        default=DEFAULT_METHODS.split(","),
        metavar="A,B,...",
        help="KV methods, with parameters as in yakv:recent=128;tail=0 (all, as in the paper's comparison); "
        "full comes first anyway",
    )
    add(
        "--budget",
        type=kind("a list of shares like 0.03125,0.0625", _shares),
        default=[DEFAULT_BUDGET],
        metavar="X,...",
        help="bytes that a step may ask of the host: those of this share of the tokens at 4 bits (0.03125)",
    )
    add("--limit", type=at_least(1), default=10, metavar="N", help="samples of each task (10)")
    add("-s", "--seed", type=at_least(0), default=0, metavar="N", help="of the tasks' samples (0)")
    add(
        "--fidelity-tokens",
        type=at_least(0),
        default=256,
        metavar="N",
        help="most tokens of a gold answer that are fed; 0: scores alone (256)",
    )
    add(
        "--max-tokens",
        type=at_least(0),
        metavar="N",
        help="most tokens of an answer, 0: fidelity alone (the task's)",
    )
    add("-o", "--output", type=Path, metavar="DIR", help="where records go, and with --report the report")
    add(
        "--report",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="no evaluation: make report.md and plots of the records in these directories",
    )
    add = parser.add_argument_group("another engine (scores only; -m then names the tokenizer)").add_argument
    add("--server", metavar="URL", help="an OpenAI-compatible server")
    add("--api-key", metavar="KEY", help="sent as bearer token")
    add("--server-model", metavar="NAME", help="the model's name there (as -m)")
    add("--label", default="server", metavar="NAME", help="what the records call it (server)")
    add_weight_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _eval(parse(build_parser(), argv)))


def _eval(args: argparse.Namespace) -> int:
    # Threads of numpy's BLAS, which most methods use, spin on the cores of the engine's own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args.report:
        from yakvrt.eval.report import write_report

        for path in write_report(args.report, args.output or args.report[0]):
            print(path)
        return 0
    if not args.task:
        raise UsageError("no task: give --task NAME, and see --list-tasks")
    if args.output is None:
        raise UsageError("no directory for the records: give -o DIR")
    tasks = open_tasks(args.task, args.data)
    specs = [MethodSpec(args.label, None)] if args.server else method_specs(args.kv, args.budget)
    return _on_server(args, tasks, specs) if args.server else _on_engine(args, tasks, specs)


def open_tasks(labels: Sequence[str], data: Sequence[str]) -> list[Task]:
    """The tasks named NAME:K=V;K=V, with the directories named [TASK=]DIR.

    Raises: ValueError for an unknown task or option, missing data, data of a task that is not there.
    """
    from difflib import get_close_matches

    from yakvrt.eval.tasks import TASKS

    asked = [label.partition(":") for label in labels]
    names = [name for name, _, _ in asked]
    for name in names:
        if name not in TASKS:
            near = get_close_matches(name, TASKS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASKS)}"
            raise ValueError(f"--task {name!r} is not known; {hint}")
        if names.count(name) > 1:
            raise ValueError(f"--task {name} is there twice; leave one out")
    directories = {name: path for name, found, path in (one.partition("=") for one in data) if found}
    for name in directories:
        if name not in names:
            raise ValueError(f"--data {name}=... is for a task that is not asked for; add --task {name}")
    shared = next((Path(one) for one in data if "=" not in one), None)
    opened = []
    for name, _, text in asked:
        pairs = [pair.partition("=") for pair in text.split(";") if pair.strip()]
        if not all(found for _, found, _ in pairs):
            raise ValueError(f"--task {name}:{text} is not understood; write NAME:K=V;K=V")
        given = {key.strip(): value.strip() for key, _, value in pairs}
        own = directories.get(name)
        opened.append(TASKS[name].open(TASKS[name].read(given), Path(own) if own else shared))
    return opened


def _on_engine(args: argparse.Namespace, tasks: list[Task], specs: list[MethodSpec]) -> int:
    from yakvrt.eval.evaluation import questions
    from yakvrt.eval.own_engine import OwnEngine

    # the engine's own cache is not used
    engine_args = argparse.Namespace(**{**vars(args), "kv": "full", "kv_args": {}, "ctx_size": 16})
    with load_engine(engine_args) as engine:
        limits = args.fidelity_tokens, args.max_tokens, args.ctx_size
        if args.ctx_size > engine.config.context_len:
            terminal.note(
                f"warning: the model was trained for {engine.config.context_len} tokens, -c asks for more"
            )
        side = OwnEngine(engine, cache_type(args), *limits)
        asked = questions(tasks, args.seed, side.count, args.limit)
        name = f"{engine.name}, random weights" if args.load_format == "dummy" else engine.name
        options = {
            **{"side": "yakvrt", "model": name, "dtype": args.dtype, "cache_type": cache_type(args)},
            **{"ctx_size": side.ctx_size, "fidelity_tokens": args.fidelity_tokens},
            "max_tokens": args.max_tokens,
        }
        return _record_all(args, side, asked, specs, options)


def _on_server(args: argparse.Namespace, tasks: list[Task], specs: list[MethodSpec]) -> int:
    from yakvrt.eval.evaluation import questions
    from yakvrt.eval.server import Server
    from yakvrt.model_source import open_model

    with ExitStack() as held:
        source = held.enter_context(
            open_model(args.model, load_format=args.load_format, offline=args.offline, progress=True)
        )
        tokenizer = source.tokenizer
        name = args.server_model or source.name

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special=False))

        side = Server(args.server, name, args.api_key, count, args.max_tokens, args.ctx_size)
        asked = questions(tasks, args.seed, count, args.limit)
        options = {
            "side": args.label,
            "model": name,
            "ctx_size": args.ctx_size,
            "max_tokens": args.max_tokens,
        }
        return _record_all(args, side, asked, specs, options)


def _record_all(
    args: argparse.Namespace,
    side: Any,
    asked: list[Question],
    specs: list[MethodSpec],
    options: dict[str, Any],
) -> int:
    import time

    from yakvrt.bench_facts import build, cpu_info
    from yakvrt.eval.evaluation import evaluate
    from yakvrt.eval.records import NAME, RecordFile

    options = {"version": __version__, "seed": args.seed, **options}
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = {"started": started, "build": build()[0], "cpu": cpu_info(), "device": args.device}
    with RecordFile(args.output, options, facts) as records:
        skipped = evaluate(side, asked, specs, records)
    note = f"; {terminal.counted(skipped, 'sample')} skipped, see the records" if skipped else ""
    terminal.note(f"{terminal.counted(len(asked), 'sample')} in {args.output / NAME}{note}")
    return 0
