"""GET /slots, and POST /slots/N?action=save, restore or erase: what slots hold, kept in files."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from yakvrt.scheduler_state import SlotBusyError
from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.errors import ApiError, json_response
from yakvrt.serve.service import Service
from yakvrt.serve.settings import Settings
from yakvrt.serve.slot_files import check_room, saved_path
from yakvrt.session import Session
from yakvrt.terminal import one_line


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
    settings = service.settings
    actions: dict[str, Callable[[Session, Path | None], dict[str, Any]]] = {
        "save": partial(save, settings),
        "restore": restore,
        "erase": erase,
    }
    action = http.query_params.get("action", "")
    if action not in actions:
        raise ApiError(f"action is {action[:40]!r}, it must be save, restore or erase", param="action")
    path = None
    if action != "erase":
        path = saved_path(settings, as_struct(await read_object(http, 1 << 16), FileName).filename)
    told = http.path_params["number"]
    if not (told.isascii() and told.isdecimal() and len(told) < 10):
        raise ApiError(f"{told[:40]!r} is no number of a slot", status=404)
    number = int(told)

    def act() -> dict[str, Any]:
        with model.scheduler.lend(number) as session:
            return actions[action](session, path)

    workers = service.texts if action == "erase" else service.files
    try:
        return json_response({"id_slot": number, **await workers.run(act)})
    except IndexError as error:
        raise ApiError(str(error), status=404) from None
    except SlotBusyError as error:
        raise ApiError(str(error), status=409, code="slot_busy") from None
    except (ValueError, OSError) as error:
        # The message names the whole path, which is none of the client's business.
        raise ApiError(one_line(error).replace(f"{settings.slot_save_path}/", "")) from None


def save(settings: Settings, session: Session, path: Path | None) -> dict[str, Any]:
    """Fields as in llama.cpp's reply."""
    assert path is not None
    check_room(settings, path, session.file_bytes())
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
