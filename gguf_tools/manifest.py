"""Hash manifests of models: reading them and checking tensors against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gguf_tools.reader import Tensor
from gguf_tools.tensor_hash import ALGORITHMS, hashes, n_counted
from gguf_tools.terminal import Progress, note, shown

MAX_BYTES: Final = 1 << 26
# Lines that llama-gguf-hash writes and that say nothing about single tensors.
_OTHER: Final = frozenset({"uuid"})

# algorithm: tensor name (None: all together) -> hex digest
Manifest = Mapping[str, Mapping[str | None, str]]


def read_manifest(path: Path) -> Manifest:
    """The hashes of a manifest file.

    Raises: ValueError when a line is not `ALGORITHM  HEX  FILE[:TENSOR]`, or none is usable.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(
            f"{path}: over the limit of {MAX_BYTES} bytes for a manifest; is this the right file?"
        )
    rows: list[tuple[str, str, str]] = []
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        words = line.split(maxsplit=2)
        if not words or words[0] in _OTHER or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[0] not in ALGORITHMS:
            raise ValueError(
                f"{path}: line {number} is {line[:60]!r}; lines are `ALGORITHM  HEX  FILE[:TENSOR]` with "
                f"one of {', '.join(ALGORITHMS)}"
            )
        rows.append((words[0], words[1].lower(), words[2]))
    if not rows:
        raise ValueError(f"{path}: holds no hashes; write some with `hash`")
    whole = min((label for _, _, label in rows), key=len)
    prefix = f"{whole}:"
    if not all(label == whole or label.startswith(prefix) for _, _, label in rows):
        # No line for the whole file: what is before the last colon is the file's name.
        whole = prefix = ""
    manifest: dict[str, dict[str | None, str]] = {}
    for algorithm, digest, label in rows:
        name = None if label == whole else label.removeprefix(prefix) if prefix else label.rpartition(":")[2]
        manifest.setdefault(algorithm, {})[name] = digest
    return manifest


def check(manifest: Manifest, tensors: Mapping[str, Tensor], algorithms: Sequence[str]) -> int:
    """Prints every hash with Ok or what is wrong, then a summary; 1 when anything is, else 0."""
    wrong = mismatches(manifest, tensors, algorithms, verbose=True)
    for line in wrong:
        note(line)
    print("Failure" if wrong else "Success")
    return 1 if wrong else 0


def mismatches(
    manifest: Manifest, tensors: Mapping[str, Tensor], algorithms: Sequence[str], *, verbose: bool
) -> list[str]:
    """What differs between a model and its manifest, one line each.

    Raises: ValueError when the manifest has no hashes of the algorithms.
    """
    # The strongest one is enough when none is asked for.
    usable = [name for name in algorithms or ALGORITHMS if name in manifest]
    if not usable:
        raise ValueError(f"the manifest has {', '.join(manifest)} only; leave the other flags out")
    usable = usable if algorithms else usable[-1:]
    wrong = []
    unseen = {(algorithm, name) for algorithm in usable for name in manifest[algorithm]}
    with Progress("hashing", n_counted(tensors)) as progress:
        for algorithm, digest, name in hashes(tensors, usable, progress):
            key = None if name is None else shown(name)
            expected = manifest[algorithm].get(key)
            unseen.discard((algorithm, key))
            what = key or "all tensors"
            # A manifest of the whole, or of the tensors alone, is complete in itself.
            if expected is None:
                if key and set(manifest[algorithm]) != {None}:
                    wrong.append(f"{what}: not in the manifest")
                continue
            if verbose:
                verdict = "Ok" if digest == expected else "Not Ok"
                progress.say(f"{algorithm:<8}  {digest}  {what}  -  {verdict}")
            if digest != expected:
                wrong.append(f"{what}: {algorithm} is {digest}, expected {shown(expected[:64])}")
    wrong += [
        f"{'all' if name is None else shown(name)}: not in the model" for _, name in sorted(unseen, key=str)
    ]
    return wrong
