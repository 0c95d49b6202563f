"""A file's contents as a Markdown document with the headings of gguf-dump --markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguf_tools.listing import TensorEntry, data_start, entries, header_entries, tensor_entries, value_text
from gguf_tools.reader import GGUFFile
from gguf_tools.terminal import shown

# The layer group of a tensor name: blk.N, enc.blk.N, dec.blk.N, enc or dec; "base" otherwise.
_GROUP = re.compile(r"(?:(?:enc|dec)\.)?blk\.\d+|enc|dec")


def markdown(path: str | Path, file: GGUFFile, *, tensors: bool) -> str:
    """The whole document."""
    lines = [f"# {path} - GGUF Internal File Dump", "", "- Endian: LITTLE endian", ""]
    lines += ["## Key Value Metadata Store", ""]
    header = header_entries(file)
    lines += [f"There are {len(header) + len(file.metadata)} key-value pairs in this file", ""]
    rows = [(entry, str(value)) for entry, value in header]
    rows += [(entry, value_text(file, entry)) for entry in entries(file)]
    lines += _table(
        ("POS", "TYPE", "Count", "Key", "Value"),
        [
            (str(n), entry.type_text, str(entry.count), shown(entry.key), _code(value))
            for n, (entry, value) in enumerate(rows, 1)
        ],
    )
    if tensors:
        lines += _tensors(file)
    return "\n".join(lines)


def _tensors(file: GGUFFile) -> Iterator[str]:
    listed = list(enumerate(tensor_entries(file)))
    total = sum(tensor.n_values for _, tensor in listed)
    groups: dict[str, list[tuple[int, TensorEntry]]] = {}
    for n, tensor in listed:
        found = _GROUP.match(tensor.name)
        groups.setdefault(found[0] if found else "base", []).append((n, tensor))
    yield from ("", f"## Tensors Overview {_rounded(total)} Elements", "")
    yield from (f"Total number of elements in all tensors: {total} Elements", "")
    for name, members in groups.items():
        count = _rounded(sum(tensor.n_values for _, tensor in members))
        yield f"- [{name} Tensor Group - {count} Elements](#{name.replace('.', '_')})"
    yield from ("", "### Tensor Data Offset", "")
    yield from (f"Offsets count from the start of the file; the data begin at {data_start(file):#x}.", "")
    yield from _table(
        ("T_ID", "Tensor Layer Name", "Data Offset (B)", "Data Size (B)"),
        [(str(n), shown(t.name), f"{t.data_offset:#x}", f"{t.n_bytes:#x}") for n, t in listed],
    )
    for name, members in groups.items():
        yield from _group(name, members, total)
    n_bytes = sum(tensor.n_bytes for _, tensor in listed)
    yield f"Total BPW for {file.path.name}: {_bits(n_bytes, total)}"


def _group(name: str, members: list[tuple[int, TensorEntry]], total: int) -> Iterator[str]:
    n_values = sum(tensor.n_values for _, tensor in members)
    n_bytes = sum(tensor.n_bytes for _, tensor in members)
    yield from ("", f'### <a name="{name.replace(".", "_")}">{name} Tensor Group</a>', "")
    yield from _table(
        ("T_ID", "Tensor Layer Name", "Elements", "Shape", "Type", "BPW"),
        [
            (
                str(n),
                shown(tensor.name),
                str(tensor.n_values),
                " x ".join(map(str, tensor.file_shape)),
                tensor.type,
                f"{tensor.n_bytes * 8 / tensor.n_values:.4f}",
            )
            for n, tensor in members
        ],
    )
    yield from ("", f"- Total elements in {name}: ({_rounded(n_values)}) {n_values}")
    yield f"- Percentage of total elements: {100 * n_values / total:.2f}%"
    yield from (f"- Bits per Weight (BPW) for {name}: {_bits(n_bytes, n_values)}", "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in cells:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _code(text: str) -> str:
    """Text as inline code, whatever backticks it holds."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _rounded(count: float) -> str:
    if count <= 1000:
        return f"{count:.0f}"
    for unit in ("K", "M", "B"):
        count /= 1000
        if count < 1000:
            return f"~{count:.0f}{unit}"
    return f"~{count / 1000:.0f}T"


def _bits(n_bytes: int, n_values: int) -> str:
    return f"{n_bytes * 8 / n_values:.4f} bits" if n_values else "undefined (no elements)"
