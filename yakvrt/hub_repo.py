"""Fetches one model repository through huggingface_hub and its cache."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yakvrt.model_files import HubError, ModelFiles, assemble, choose_weights, is_plain, list_files
from yakvrt.package_index import DISK_FULL, check_file_limit, check_free_space

# All that is read beside the weights; fetched first, so that weights in the cache mean a complete model.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
REQUIRED_WITH_SAFETENSORS = ("config.json", "tokenizer.json", "tokenizer_config.json")
TIMEOUT_SECONDS = 5.0


class HubUnreachable(HubError):
    """The hub does not answer: no network, offline mode, or an error of its servers."""


def cached(repo: str, quant: str | None) -> ModelFiles | None:
    """Finds a complete copy in the hub's cache, without the slow import of huggingface_hub."""
    storage = hub_cache() / f"models--{repo.replace('/', '--')}"
    try:
        commit = (storage / "refs" / "main").read_text(encoding="ascii").strip()[:100]
        snapshot = storage / "snapshots" / commit
        if not is_plain(commit) or not snapshot.is_dir():
            return None
        names = list_files(snapshot, nested=True)
        weights = choose_weights(
            names, quant, where=repo, locate=lambda name: snapshot / name, strict_quant=True
        )
        if weights[0].endswith(".safetensors") and not set(REQUIRED_WITH_SAFETENSORS) <= set(names):
            return None
        return assemble(repo, snapshot, weights)
    except (OSError, ValueError, HubError):
        return None


def config_file(repo: str, *, offline: bool) -> Path | None:
    """The config.json of a repository, in the hub's cache or fetched into it; None where it has none.

    Raises: HubError, HubUnreachable.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    offline = offline or constants.HF_HUB_OFFLINE
    with _explained(repo):
        if isinstance(path := try_to_load_from_cache(repo, "config.json"), str):
            return Path(path)
        if not offline:
            HfApi().model_info(repo, timeout=TIMEOUT_SECONDS)  # one short try, as in _fetch_online
        try:
            return Path(
                hf_hub_download(repo, "config.json", local_files_only=offline, etag_timeout=TIMEOUT_SECONDS)
            )
        except LocalEntryNotFoundError as error:
            if not offline:
                raise
            raise HubUnreachable(
                f"{repo} is not in the hub's cache and offline mode is on: plan it once without --offline "
                "and HF_HUB_OFFLINE, which fetches its config.json alone"
            ) from error
        except EntryNotFoundError:
            return None


def hub_cache() -> Path:
    """Gives the hub's cache directory by the rules of huggingface_hub."""
    environ = os.environ
    cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if not cache:
        xdg = environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = os.path.join(environ.get("HF_HOME") or os.path.join(xdg, "huggingface"), "hub")
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def fetch(repo: str, quant: str | None, *, offline: bool, progress: bool) -> ModelFiles:
    """Brings the files of a repository into the hub's cache; what is there already is not fetched again.

    Raises: HubError, HubUnreachable.
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise HubError(
            f"{repo} needs huggingface_hub: run '{sys.executable} -m pip install huggingface_hub'"
        ) from error
    with _explained(repo):
        if offline or constants.HF_HUB_OFFLINE:
            return _fetch_offline(repo, quant)
        with _quiet_bars(not (progress and sys.stderr.isatty())):
            return _fetch_online(repo, quant)


def _fetch_offline(repo: str, quant: str | None) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repo, local_files_only=True, allow_patterns=["config.json"]))
        names = list_files(snapshot, nested=True)
        weights = choose_weights(names, quant, where=str(snapshot), locate=lambda name: snapshot / name)
        return assemble(repo, snapshot, weights)
    except (HubError, LocalEntryNotFoundError) as error:
        raise HubUnreachable(
            f"{repo} is not complete in the hub's cache and offline mode is on: fetch it once without "
            "--offline and HF_HUB_OFFLINE"
        ) from error


def _fetch_online(repo: str, quant: str | None) -> ModelFiles:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache

    # One short try that says whether the hub answers at all, before any call that would retry for long.
    info = HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or () if is_plain(each.rfilename)}
    weights = choose_weights(
        sizes,
        quant,
        where=repo,
        locate=lambda name: Path(hf_hub_download(repo, name, etag_timeout=TIMEOUT_SECONDS)),
    )
    if missing := [name for name in weights if name not in sizes]:
        raise HubError(f"{repo} lacks {missing[0]} that its index names: choose another repository")
    small = [name for name in SMALL_FILES if name in sizes and weights[0].endswith(".safetensors")]
    wanted = [
        name
        for name in (*small, *weights)
        if not isinstance(try_to_load_from_cache(repo, name, revision=info.sha), str)
    ]
    existing = next(p for p in (hub_cache(), *hub_cache().parents) if p.exists())
    check_file_limit(max((sizes[name] for name in wanted), default=0))
    check_free_space(existing, sum(sizes[name] for name in wanted))
    if small:
        snapshot_download(repo, allow_patterns=small, etag_timeout=TIMEOUT_SECONDS)
    snapshot = snapshot_download(repo, allow_patterns=list(weights), etag_timeout=TIMEOUT_SECONDS)
    return assemble(repo, Path(snapshot), weights)


@contextmanager
def _quiet_bars(quiet: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if not quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns whatever huggingface_hub raises into one sentence with the remedy."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN or run 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no repository {repo}, or it is private: check its name, "
            "or set HF_TOKEN or run 'hf auth login' when it is yours"
        ) from error
    except errors.HFValidationError as error:
        raise HubError(f"{repo!r} is no hub repository: write it as user/repo[:quant]") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if not status:  # older versions raise this for a lost connection, with no answer in it
            raise HubUnreachable(_no_answer(repo)) from error
        if status in (401, 403):
            raise HubError(
                f"the hub refuses access to {repo} (HTTP {status}): set a valid HF_TOKEN or run 'hf auth "
                f"login', and accept the licence at {page}"
            ) from error
        if status >= 500 or status in (408, 429):
            raise HubUnreachable(
                f"the hub cannot serve {repo} now (HTTP {status}): try again later"
            ) from error
        raise HubError(f"the hub refuses {repo} (HTTP {status}): check the name and HF_ENDPOINT") from error
    except Exception as error:
        full = next((code for code in DISK_FULL if os.strerror(code) in str(error)), None)
        if full is not None:
            raise HubError(
                f"{hub_cache()} cannot hold {repo} ({os.strerror(full)}): free some space, raise the limit, "
                "or set HF_HOME to another disk"
            ) from error
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        ):
            raise HubError(f"{hub_cache()} cannot be written: set HF_HOME to a writable directory") from error
        if _is_network_error(error):
            raise HubUnreachable(_no_answer(repo)) from error
        raise HubError(
            f"{repo} cannot be fetched ({type(error).__name__}: {str(error)[:300]}): try again"
        ) from error


def _no_answer(repo: str) -> str:
    from huggingface_hub import constants

    return (
        f"the hub at {constants.ENDPOINT} cannot be reached to fetch {repo}: check the network, "
        "the proxy and HF_ENDPOINT, or give the model as a file"
    )


def _is_network_error(error: BaseException) -> bool:
    """Knows, among an error and its causes, those of every HTTP library that huggingface_hub has used."""
    transport = {"TransportError", "RequestException", "LocalEntryNotFoundError", "OfflineModeIsEnabled"}
    seen = 0
    cause: BaseException | None = error
    while cause is not None and seen < 10:
        if isinstance(cause, (ConnectionError, TimeoutError)) or transport & {
            c.__name__ for c in type(cause).__mro__
        }:
            return True
        cause, seen = cause.__cause__ or cause.__context__, seen + 1
    return False


def weight_sha256(path: Path) -> str | None:
    """Gives the sha256 that the hub's cache keeps as the name of a stored weight file."""
    blob = path.resolve()
    named_so = (
        blob.parent.name == "blobs" and len(blob.name) == 64 and set(blob.name) <= set("0123456789abcdef")
    )
    return blob.name if named_so else None
