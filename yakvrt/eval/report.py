"""report.md of the records of one or several evaluations: tables, plots, and what they say of the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yakvrt.terminal import counted, note
from yakvrt.whole_file import write_whole

from .bootstrap import mean_of
from .claims import MIN_SAMPLES, sentences, verdicts
from .findings import FULL, Findings, Method, title
from .records import NAME, Record, read_records

ABOUT = """\
All methods of a sample decode behind one exact prefill of its prompt, greedily; the prompt's last token is
decoded too. KL, NLL and same top-1 are read while the gold answer is fed. A budget is a share of the tokens:
their K and V at 4 bits are the bytes that a step may ask of the host (gross); moved are those that were not
on the device already. MB are of a decoded token, all layers. Intervals hold 95 % of bootstrap redraws."""
FORMATS = "dtype", "cache_type"  # of all records of a model, or methods are not what differs
LENGTHS = "fidelity_tokens", "max_tokens"  # of all records of a task
NAMED = ("version", "seed", "dtype", "cache_type", "ctx_size", "fidelity_tokens", "max_tokens")


def write_report(directories: Sequence[Path], target: Path) -> list[Path]:
    """Writes report.md, seen whole or not at all, and its plots before. Returns: their paths.

    Raises: ValueError for directories without records, malformed lines, and records of one model that cannot
    be compared; OSError.
    """
    read = [_read(directory) for directory in directories]
    by_model: dict[str, list[Record]] = {}
    shared: dict[tuple[str, ...], Any] = {}
    for header, records in read:
        options = header["options"]
        model = options.get("model", "?")
        by_model.setdefault(model, []).extend(records)
        tasks = sorted({record["task"] for record in records})
        keys = [(model, name) for name in FORMATS] + [
            (model, task, name) for task in tasks for name in LENGTHS
        ]
        for key in (key for key in keys if key[-1] in options):
            name = key[-1]
            if (held := shared.setdefault(key, options[name])) != options[name]:
                raise ValueError(
                    f"{' '.join(key[:-1])} was evaluated with {name}={held} and {name}={options[name]}, "
                    "which would mix; make a report of each"
                )
    if not any(by_model.values()):
        raise ValueError(f"{directories[0] / NAME} holds no records yet; run the evaluation first")
    target.mkdir(parents=True, exist_ok=True)
    lines, written = ["# Evaluation of KV methods", "", *_about(read)], []
    for model, records in by_model.items():
        if not records:
            continue
        findings = Findings.of(model, records)
        pictures = _plots(findings, target)
        written += [target / name for name in pictures]
        lines += [f"## {model}", "", *_section(findings), *(f"![{name}]({name})\n" for name in pictures)]
    path = target / "report.md"
    write_whole(path, "\n".join(lines).encode(), 0o644)
    return [path, *written]


def _read(directory: Path) -> tuple[Record, list[Record]]:
    path = directory / NAME if directory.is_dir() else directory
    if not path.is_file():
        raise ValueError(f"{directory} holds no {NAME}; name the -o of a yakvrt eval")
    return read_records(path)


def _about(read: Sequence[tuple[Record, list[Record]]]) -> list[str]:
    lines = [ABOUT, ""]
    for header, records in read:
        options = header["options"]
        named = ", ".join(f"{name} {options[name]}" for name in NAMED if options.get(name) is not None)
        made = f"{header.get('started', '')[:10]}, build {header.get('build', '?')}, {header.get('cpu', '?')}"
        where = f"{options.get('model')} by {options.get('side')}"
        lines.append(f"- {where}: {counted(len(records), 'record')} ({named}; {made})")
    return [*lines, ""]


def _plots(findings: Findings, target: Path) -> list[str]:
    from .report_plots import draw

    try:
        return draw(findings, target)
    except ImportError:
        note("no plots without matplotlib; pip install 'yakvrt[plot]' brings it")
        return []


def _section(findings: Findings) -> Iterator[str]:
    for task, intensity in findings.tasks.items():
        yield f"### {task} ({intensity} intensity)"
        yield ""
        yield from _task_table(findings, task)
        yield ""
    for task in dict.fromkeys(record["task"] for record in findings.skipped):
        n = sum(record["task"] == task for record in findings.skipped)
        reason = next(record["skipped"] for record in findings.skipped if record["task"] == task)
        yield f"{counted(n, 'sample')} of {task} skipped, the first since: {reason}."
        yield ""
    if findings.failed:
        failed = ", ".join(f"{task} ({score:.1f})" for task, score in findings.failed.items())
        yield f"Scores tell nothing where full attention fails, and are left out below: {failed}."
        yield ""
    if len(set(findings.tasks.values())) == 2:
        yield "### Low beside high intensity"
        yield ""
        yield from _intensity_table(findings)
        yield ""
    found = sentences(verdicts(findings))
    if found:
        yield "### The paper's claims, here"
        yield ""
        yield from (f"- {sentence}" for sentence in found)
        yield ""
        yield f"Less than {MIN_SAMPLES} samples of a task decide nothing."
        yield ""


def _task_table(findings: Findings, task: str) -> Iterator[str]:
    yield from _head(
        *("method", "n", "score", "lost", "KL", "KL p99", "same top-1", "NLL", "MB gross", "MB moved"),
        *("device B/token", "host B/token"),
    )
    for method in findings.methods:
        if not findings.records_of(task, method):
            continue

        def mean(name: str, digits: int, scale: float = 1, method: Method = method) -> str:
            value = findings.plain_mean(name, task, method)
            return "-" if value is None else f"{value * scale:.{digits}f}"

        lost = findings.differences("score", FULL, method)
        yield _row(
            title(method),
            str(len(findings.records_of(task, method))),
            findings.mean("score", method, task=task).shown(),
            "" if method == FULL else mean_of({t: v for t, v in lost.items() if t == task}).shown(),
            findings.mean("kl_mean", method, task=task).shown(4),
            *(mean("kl_p99", 3), mean("same_top1", 3), mean("nll", 3)),
            *(mean("gross_bytes", 2, 1e-6), mean("moved_bytes", 2, 1e-6)),
            *(mean("device_bytes_per_token", 0), mean("host_bytes_per_token", 0)),
        )


def _intensity_table(findings: Findings) -> Iterator[str]:
    """Means over tasks."""
    yield from _head("method", *(f"{what}, {i}" for what in ("lost", "KL") for i in ("low", "high")))
    for method in findings.methods:
        if method == FULL:
            continue
        lost = [findings.lost(method, i).shown() for i in ("low", "high")]
        kl = [findings.mean("kl_mean", method, intensity=i).shown(4) for i in ("low", "high")]
        yield _row(title(method), *lost, *kl)


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row("---", *("---:" for _ in names[1:]))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
