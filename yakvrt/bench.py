"""`yakvrt bench`: prompt processing and text generation speed with llama-bench's flags, table and records."""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from yakvrt import terminal
from yakvrt.bench_arguments import Setup, Test, build_parser, plan, shown_columns
from yakvrt.bench_records import SQL_TABLE, Record, bench_table
from yakvrt.cli_parsing import parse
from yakvrt.device_arguments import device_keywords, gpu_name
from yakvrt.machine_arguments import machine_keywords
from yakvrt.record_formats import formats, print_records
from yakvrt.trace_file import Tracing
from yakvrt.tuning import fetch_gbps

if TYPE_CHECKING:
    from yakvrt.session import Session

SEED = 1234


def measure(
    session: Session, vocab_size: int, test: Test, n_batch: int, repetitions: int, warm_up: bool
) -> tuple[int, ...]:
    """Nanoseconds of each repetition of one test, from the same random tokens every time."""
    random_ids = random.Random(SEED)
    ids = [random_ids.randrange(vocab_size) for _ in range(test.n_tokens)]
    depth_ids = ids[: test.n_depth]
    prompt_ids = ids[test.n_depth : test.n_depth + test.n_prompt]
    gen_ids = ids[test.n_depth + test.n_prompt :]

    def prefill(part: Sequence[int]) -> None:
        for start in range(0, len(part), n_batch):
            session.prefill(part[start : start + n_batch])

    session.truncate(0)
    prefill(depth_ids)
    if warm_up:
        prefill(prompt_ids)
        for token in gen_ids[:1]:
            session.decode(token)
    samples = []
    for _ in range(repetitions):
        session.truncate(test.n_depth)
        start_ns = time.perf_counter_ns()
        prefill(prompt_ids)
        for token in gen_ids:
            session.decode(token)
        samples.append(time.perf_counter_ns() - start_ns)
    return tuple(samples)


def moved(before: Mapping[str, float | str], after: Mapping[str, float | str]) -> tuple[int, float]:
    """Bytes from the host for a token decoded between two readings of Session.kv, and the hit rate."""

    def counted(name: str) -> float:
        return float(after.get(name, 0)) - float(before.get(name, 0))

    moved_bytes, gross = counted("moved_bytes"), counted("gross_bytes")
    return round(moved_bytes / max(1.0, counted("steps"))), 1 - moved_bytes / gross if gross else 0.0


def link_gbps(test: Test, samples_ns: Sequence[int], moved_bytes: int) -> float:
    """Of moved_bytes a token, over the time of whole steps; 0 where a prompt is timed as well."""
    return 0.0 if test.n_prompt else test.n_gen * moved_bytes / statistics.median(samples_ns)


def records_of(
    setup: Setup, tests: Sequence[Test], args: argparse.Namespace, tracing: Tracing
) -> Iterator[Record]:
    """Loads one engine and yields a record for each test as it ends."""
    import yakvrt
    from yakvrt.bench_facts import build, cpu_info, dummy_facts, model_facts
    from yakvrt.chunk_size import default_chunk
    from yakvrt.hub import resolve

    commit, number = build()
    gpu = gpu_name(args)
    ceiling = fetch_gbps(gpu or cpu_info())
    n_ubatch = setup.n_ubatch or default_chunk(args.device)
    with yakvrt.load(
        setup.model,
        ctx_size=max(test.n_tokens for test in tests),
        threads=setup.threads,
        cache_type=setup.cache_type,
        kv=setup.kv,
        dtype=setup.dtype,
        ubatch_size=n_ubatch,
        load_format=args.load_format,
        offline=args.offline,
        **device_keywords(args),
        **machine_keywords(args),
    ) as engine:
        if args.load_format == "dummy":
            path, facts = setup.model, dummy_facts(engine)
        else:
            files = resolve(setup.model, offline=True)
            path, facts = str(files.weights[0]), model_facts(files, engine.config.family)
        session = engine.session()
        for test in tests:
            time.sleep(args.delay)
            if args.progress:
                terminal.note(
                    f"{setup.model}: {test.name}, {terminal.counted(args.repetitions, 'repetition')}"
                )
            n_batch = setup.n_batch or test.n_tokens  # the whole prompt, as generate takes it
            began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            before = session.kv
            with tracing.follow(engine, f"{setup.model} {setup.kv} {test.name}"):
                samples = measure(
                    session, engine.config.vocab_size, test, n_batch, args.repetitions, not args.no_warmup
                )
            moved_bytes, hit_rate = moved(before, session.kv)
            gbps = link_gbps(test, samples, moved_bytes)
            yield Record(
                build_commit=commit,
                build_number=number,
                cpu_info=cpu_info(),
                gpu_info=gpu,
                backends="CUDA" if gpu else "CPU",
                model_filename=path,
                model_type=facts.type_name,
                model_size=facts.size_bytes,
                model_n_params=facts.n_params,
                n_batch=n_batch,
                n_ubatch=n_ubatch,
                n_threads=engine.n_threads,
                type_k=setup.cache_type,
                type_v=setup.cache_type,
                n_prompt=test.n_prompt,
                n_gen=test.n_gen,
                n_depth=test.n_depth,
                test_time=began,
                samples_ns=samples,
                kv_method=setup.kv,
                kv_bytes=int(session.kv["bytes"]),
                kv_moved_bytes=moved_bytes,
                kv_hit_rate=round(hit_rate, 4),
                kv_link_gbps=round(gbps, 4),
                kv_link_part=round(gbps / ceiling, 4) if ceiling else 0.0,
                dtype=setup.dtype,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _bench(parse(build_parser(), argv)))


def _bench(args: argparse.Namespace) -> int:
    planned = plan(args)
    by_name = formats(bench_table(shown_columns([setup for setup, _ in planned])), SQL_TABLE)
    outputs = [(by_name[args.output], sys.stdout)]
    if args.output_err:
        outputs.append((by_name[args.output_err], sys.stderr))
    with Tracing(args.trace) as tracing:
        records = (records_of(setup, tests, args, tracing) for setup, tests in planned)
        print_records(itertools.chain.from_iterable(records), outputs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
