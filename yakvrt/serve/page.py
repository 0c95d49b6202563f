"""GET /: the chat page, one file without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, by which a browser runs the script and style that are in it and no others."""
    text = files("yakvrt.serve").joinpath("chat_page.html").read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        allowed[tag] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return text.encode(), headers


async def page(http: Request) -> Response:
    """Served also while the model loads."""
    content, headers = _page()
    return Response(content, headers=headers, media_type="text/html; charset=utf-8")
