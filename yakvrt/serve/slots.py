"""GET /slots, and POST /slots/N?action=save, restore or erase: what slots hold, kept in files."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from yakvrt.scheduler_state import SlotBusyError
from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.errors import ApiError, json_response
from yakvrt.serve.service import Service
from yakvrt.session import Session
from yakvrt.terminal import one_line

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class FileName(msgspec.Struct):
    """Of a saved slot."""

    filename: str


async def list_slots(http: Request) -> Response:
    """What every slot does."""
    model = http.app.state.service.model
    told = []
    for number, view in enumerate(model.scheduler.slots()):
        slot: dict[str, Any] = {"id": number, "n_ctx": model.engine.ctx_size, "is_processing": False}
        slot["n_tokens"] = view.n_tokens
        if view.request is not None:
            timings = view.request.timings
            slot |= {
                "is_processing": True,
                "n_prompt_tokens": len(view.request.prompt_ids),
                "n_prompt_tokens_cache": timings["cache_n"],
                "n_decoded": timings["predicted_n"],
            }
        told.append(slot)
    return json_response(told)


async def change_slot(http: Request) -> Response:
    """Saves, restores or erases an idle slot."""
    service: Service = http.app.state.service
    model = service.model
    actions = {"save": save, "restore": restore, "erase": erase}
    action = http.query_params.get("action", "")
    if action not in actions:
        raise ApiError(f"action is {action[:40]!r}, it must be save, restore or erase", param="action")
    path = None
    if action != "erase":
        path = saved_path(service, as_struct(await read_object(http, 1 << 16), FileName).filename)
    told = http.path_params["number"]
    if not (told.isascii() and told.isdecimal() and len(told) < 10):
        raise ApiError(f"{told[:40]!r} is no number of a slot", status=404)
    number = int(told)

    def act() -> dict[str, Any]:
        with model.scheduler.lend(number) as session:
            return actions[action](session, path)

    try:
        return json_response({"id_slot": number, **await asyncio.to_thread(act)})
    except IndexError as error:
        raise ApiError(str(error), status=404) from None
    except SlotBusyError as error:
        raise ApiError(str(error), status=409, code="slot_busy") from None
    except (ValueError, OSError) as error:
        # The message names the whole path, which is none of the client's business.
        raise ApiError(one_line(error).replace(f"{service.settings.slot_save_path}/", "")) from None


def saved_path(service: Service, name: str) -> Path:
    """Where the file lies. Raises: ApiError for names that leave the directory, or without one."""
    directory = service.settings.slot_save_path
    if directory is None:
        raise ApiError("the server was started without --slot-save-path DIR", status=501)
    if not FILE_NAME.fullmatch(name):
        raise ApiError(
            "filename must be 1 to 200 letters, digits, _, - and dots, and not begin with a dot or -",
            param="filename",
        )
    return directory / name


def save(session: Session, path: Path | None) -> dict[str, Any]:
    """Fields as in llama.cpp's reply."""
    assert path is not None
    ms = _timed(lambda: session.save(path))
    n_bytes = path.stat().st_size
    return {
        "filename": path.name,
        "n_saved": len(session.ids),
        "n_written": n_bytes,
        "timings": {"save_ms": ms},
    }


def restore(session: Session, path: Path | None) -> dict[str, Any]:
    """Fields as in llama.cpp's reply."""
    assert path is not None
    ms = _timed(lambda: session.restore(path))
    n_bytes = path.stat().st_size
    return {
        "filename": path.name,
        "n_restored": len(session.ids),
        "n_read": n_bytes,
        "timings": {"restore_ms": ms},
    }


def erase(session: Session, path: Path | None) -> dict[str, Any]:
    """Forgets all tokens."""
    n = len(session.ids)
    session.truncate(0)
    return {"n_erased": n}


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
