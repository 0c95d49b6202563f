"""The directory of saved slots: GET /slots/files lists it, DELETE /slots/files/NAME removes one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from yakvrt.serve.errors import ApiError, json_response
from yakvrt.serve.service import Service
from yakvrt.serve.settings import Settings

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def saved_path(settings: Settings, name: str) -> Path:
    """Where the file lies. Raises: ApiError for names that leave the directory, or without one."""
    if not FILE_NAME.fullmatch(name):
        raise ApiError(
            "filename must be 1 to 200 letters, digits, _, - and dots, and not begin with a dot or -",
            param="filename",
        )
    return _directory(settings) / name


def check_room(settings: Settings, path: Path, n_bytes: int) -> None:
    """Whether a file of n_bytes may be there in place of what has its name. Raises: ApiError."""
    held = sum(entry.stat().st_size for entry in _files(settings) if entry.name != path.name)
    if held + n_bytes > settings.slot_save_bytes:
        raise ApiError(
            f"the saved slots are {held} bytes, {n_bytes} more would be over {settings.slot_save_bytes}; "
            "delete some (DELETE /slots/files/NAME) or start the server with a larger --slot-save-limit",
            status=507,
            code="slot_files_full",
        )


async def list_files(http: Request) -> Response:
    """Names and bytes, and how many all may have."""
    service: Service = http.app.state.service
    settings = service.settings

    def listed() -> list[dict[str, Any]]:
        found = [(entry.name, entry.stat().st_size) for entry in _files(settings)]
        return [{"filename": name, "n_bytes": n_bytes} for name, n_bytes in sorted(found)]

    files = await service.files.run(listed)
    return json_response({"files": files, "max_bytes": settings.slot_save_bytes})


async def delete_file(http: Request) -> Response:
    """Removes one."""
    service: Service = http.app.state.service
    path = saved_path(service.settings, http.path_params["name"])
    try:
        await service.files.run(path.unlink)
    except FileNotFoundError:
        raise ApiError(f"there is no file {path.name}", status=404) from None
    return json_response({"filename": path.name, "deleted": True})


def _directory(settings: Settings) -> Path:
    if settings.slot_save_path is None:
        raise ApiError("the server was started without --slot-save-path DIR", status=501)
    return settings.slot_save_path


def _files(settings: Settings) -> list[os.DirEntry[str]]:
    with os.scandir(_directory(settings)) as entries:
        return [entry for entry in entries if entry.is_file(follow_symlinks=False)]
