"""Where compiled kernels lie: one directory per state of the sources, compiler and CPU, old ones removed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ..cache_directory import cache_directory

UNUSED_DAYS = 30
NEWEST_KEPT = 8  # whatever their age in hours: other checkouts, other CPUs of a shared home
SPARE_DAYS = 1  # for those beyond the newest


def content_directory(family: str, sources: Iterable[str], parts: Iterable[str]) -> Path:
    """The cache directory of `family` for these kernel sources and other `parts`, the compilers' versions and
    the machine: an edit, another compiler or another machine never meets old code.
    """
    digest = hashlib.sha256(sources_digest(sources).encode())
    for part in parts:
        digest.update(part.encode() + b"\0")
    return cache_directory() / family / digest.hexdigest()[:24]


def sources_digest(patterns: Iterable[str]) -> str:
    """Of every file of the package that fits one of the patterns."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for source in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def hold(directory: Path) -> int:
    """Makes the directory, marks it as used and keeps others from removing it until the descriptor closes.

    Raises: OSError where it cannot be made.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed since
            continue
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(directory), os.fstat(descriptor)):
                with contextlib.suppress(PermissionError):  # a cache that others made for us
                    os.utime(directory)
                return descriptor
        os.close(descriptor)


def prune(directory: Path) -> None:
    """Removes the siblings of a held directory that nobody has used for long. What is in use stays."""
    try:
        outdated = _outdated(directory)
    except OSError:  # another process is at it, or the place is not ours to read
        return
    for sibling in outdated:
        with contextlib.suppress(OSError):
            descriptor = os.open(sibling, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                doomed = sibling.with_name(f".removed-{sibling.name}-{os.getpid()}")
                sibling.rename(doomed)  # so that nobody meets half of it
                shutil.rmtree(doomed, ignore_errors=True)
            finally:
                os.close(descriptor)


def _outdated(directory: Path) -> list[Path]:
    with os.scandir(directory.parent) as entries:
        siblings = [e for e in entries if e.name != directory.name and e.is_dir(follow_symlinks=False)]
    used = sorted(((e.stat().st_mtime, Path(e.path)) for e in siblings), reverse=True)
    found = []
    for place, (mtime, path) in enumerate(used):
        days = (time.time() - mtime) / 86400
        if days > UNUSED_DAYS or (place >= NEWEST_KEPT and days > SPARE_DAYS):
            found.append(path)
    return found
