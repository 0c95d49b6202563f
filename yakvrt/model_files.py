"""The files that make up one model on this machine, found and checked without reading any weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

DEFAULT_QUANT = "Q4_K_M"
QUANT_ORDER = (DEFAULT_QUANT, "Q4_0", "Q4_1", "Q5_K_M", "Q8_0", "F16", "BF16", "F32")
SAFETENSORS_INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_SPLITS = 4096
MAX_LISTED_FILES = 100_000
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>gguf|safetensors)")
# consolidated*: the same weights a second time in Mistral's own layout; the others are not language models.
SIDE_WEIGHTS = re.compile(r"(consolidated|adapter_model|mmproj).*", re.IGNORECASE)


class HubError(RuntimeError):
    """A model name cannot be turned into files; the message is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model; weights are one .gguf, its splits in order, or the .safetensors shards."""

    name: str
    directory: Path
    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: Path | None
    chat_template: Path | None
    generation_config: Path | None
    tokenizer_config: Path | None = None


def files_at(path: Path, quant: str | None = None, name: str | None = None) -> ModelFiles:
    """Finds the model in a directory, or the one that a .gguf or .safetensors file belongs to.

    Raises: HubError.
    """
    if path.is_dir():
        names = list_files(path, nested=False)
        weights = choose_weights(names, quant, where=str(path), locate=lambda index: path / index)
        return assemble(name or path.resolve().name, path, weights)
    if path.exists() and not path.is_file():
        raise HubError(f"{path} is no regular file: give a .gguf file, a .safetensors file or a directory")
    if not path.is_file():
        raise HubError(
            f"{path} does not exist: check the path, or list the known names with 'python -m yakvrt models'"
        )
    if path.suffix != ".safetensors" and not is_gguf(path):
        raise HubError(
            f"{path} is no model file: give a .gguf file, a .safetensors file or a directory of them"
        )
    weights = _all_splits(path.name, {entry.name for entry in path.parent.iterdir()}, where=str(path.parent))
    return assemble(name or path.stem, path.parent, weights)


def assemble(name: str, directory: Path, weights: Iterable[str]) -> ModelFiles:
    """Joins the chosen weight files and what lies beside them.

    Raises: HubError when a weight file or the config.json of safetensors is missing.
    """
    paths = tuple(directory / weight for weight in weights)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise HubError(
            f"{directory} lacks {missing[0]} ({len(missing)} of {len(paths)} weight files are missing): "
            "fetch the model again"
        )
    if is_gguf(paths[0]):  # a GGUF file carries its own configuration and tokenizer
        return ModelFiles(name, directory, paths, None, None, None, None)

    def beside(*names: str) -> Path | None:
        return next((directory / each for each in names if (directory / each).is_file()), None)

    config = beside("config.json")
    if config is None:
        raise HubError(f"{directory} lacks config.json: safetensors need it and tokenizer.json beside them")
    return ModelFiles(
        name,
        directory,
        paths,
        config,
        beside("tokenizer.json"),
        beside("chat_template.jinja", "chat_template.json"),
        beside("generation_config.json"),
        beside("tokenizer_config.json"),
    )


def is_gguf(path: Path) -> bool:
    """Tells a GGUF file by its name, else by its first bytes: those that Ollama keeps have no suffix."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def list_files(directory: Path, *, nested: bool) -> list[str]:
    """Lists the files of a directory, and if `nested` of its direct subdirectories, as relative names."""
    names: list[str] = []
    try:
        for entry in sorted(directory.iterdir()):
            if not entry.is_dir():
                names.append(entry.name)
            elif nested:
                names += [f"{entry.name}/{inner.name}" for inner in entry.iterdir()]
            if len(names) > MAX_LISTED_FILES:
                raise HubError(
                    f"{directory} holds over {MAX_LISTED_FILES} files: give a directory of one model"
                )
    except OSError as error:
        raise HubError(f"{directory} cannot be listed ({error.strerror}): check its permissions") from error
    return names


def choose_weights(
    names: Iterable[str],
    quant: str | None,
    *,
    where: str,
    locate: Callable[[str], Path],
    strict_quant: bool = False,
) -> tuple[str, ...]:
    """Chooses the weight files among `names`: safetensors, or the GGUF of `quant` when asked or alone.

    `locate` gives the path of the shard index, `strict_quant` refuses any GGUF but `quant` or the default.
    Raises: HubError.
    """
    known = {name for name in names if is_plain(name)}
    top = sorted(
        n for n in known if n.endswith(".safetensors") and "/" not in n and not SIDE_WEIGHTS.fullmatch(n)
    )
    if quant is None and SAFETENSORS_INDEX in known:
        return _shards_of_index(locate(SAFETENSORS_INDEX))
    if quant is None and "model.safetensors" in top:
        return ("model.safetensors",)
    if quant is None and top:
        shards = _all_splits(top[0], known, where)
        if len(shards) != len(top):
            raise HubError(
                f"{where} holds {len(top)} safetensors files and no {SAFETENSORS_INDEX}: give one file"
            )
        return shards
    groups: dict[str, str] = {}
    for name in sorted(known):
        base = PurePosixPath(name).name
        if base.lower().endswith(".gguf") and not SIDE_WEIGHTS.fullmatch(base):
            split = SPLIT_NAME.fullmatch(name)
            groups.setdefault(split["stem"] if split else name[: -len(".gguf")], name)
    if not groups:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in known)
        reason = (
            "only pickled weights, which are never loaded" if pickled else "no .gguf or .safetensors file"
        )
        raise HubError(f"{where} holds {reason}: choose a model with .gguf or .safetensors weights")
    first = _pick_quant(groups, quant, where, strict_quant)
    return _all_splits(first, known, where)


def is_plain(name: str) -> bool:
    """Tells whether a relative file name stays inside its directory and is free of pattern characters."""
    parts = name.split("/")
    return all(re.fullmatch(r"[\w.+=@,() -]+", part) and part not in (".", "..") for part in parts)


def _pick_quant(groups: dict[str, str], quant: str | None, where: str, strict: bool) -> str:
    wanted = (quant,) if quant else (DEFAULT_QUANT,) if strict else QUANT_ORDER
    for label in wanted:
        bounded = re.compile(rf"(?:^|[-._/]){re.escape(label)}(?=[-._/]|$)", re.IGNORECASE)
        matching = [s for s, n in groups.items() if bounded.search(s) or n.rsplit("/", 1)[-1] == label]
        if matching:
            return groups[min(matching, key=lambda stem: (len(stem), stem))]
    if quant is None and len(groups) == 1:
        return next(iter(groups.values()))
    listed = ", ".join(sorted(PurePosixPath(stem).name for stem in groups)[:20])
    if quant is None and not strict:
        stem, name = min(groups.items())
        one = f"{where}/{name}" if os.path.isdir(where) else f"{where}:{PurePosixPath(stem).name}"
        raise HubError(f"{where} holds {len(groups)} models ({listed}): give one of them, as {one}")
    raise HubError(f"{where} holds no GGUF file of quant {quant or DEFAULT_QUANT}: choose one of {listed}")


def _all_splits(name: str, known: set[str], where: str) -> tuple[str, ...]:
    """Gives every split of the set that `name` belongs to, in order, or `name` alone."""
    split = SPLIT_NAME.fullmatch(name)
    if split is None:
        return (name,)
    count = int(split["count"])
    if not 1 <= int(split["number"]) <= count <= MAX_SPLITS:
        raise HubError(
            f"{name} in {where} is not a split of at most {MAX_SPLITS}: check how the file is named"
        )
    parts = tuple(f"{split['stem']}-{i:05d}-of-{count:05d}.{split['kind']}" for i in range(1, count + 1))
    missing = [part for part in parts if part not in known]
    if missing:
        raise HubError(
            f"{where} lacks {missing[0]} ({len(missing)} of {count} splits are missing): fetch them"
        )
    return parts


def _shards_of_index(path: Path) -> tuple[str, ...]:
    """Reads the shard names of a safetensors index; each must be a plain name in the same directory."""
    try:
        if os.path.getsize(path) > MAX_INDEX_BYTES:
            raise HubError(
                f"{path} is over {MAX_INDEX_BYTES >> 20} MiB: no real index is, fetch the model again"
            )
        weight_map = json.loads(path.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(f"{path} is no valid safetensors index: fetch the model again") from error
    for shard in shards:
        if not (
            isinstance(shard, str) and is_plain(shard) and "/" not in shard and shard.endswith(".safetensors")
        ):
            raise HubError(f"{path} names the shard {shard!r} outside its directory: do not trust this model")
    if not 1 <= len(shards) <= MAX_SPLITS:
        raise HubError(f"{path} names {len(shards)} shards, not 1 to {MAX_SPLITS}: fetch the model again")
    return tuple(shards)
