"""What confines an answer to a form: response_format."""

from __future__ import annotations

from typing import Any

from yakvrt.serve.errors import ApiError


def check_format(response_format: dict[str, Any] | None) -> None:
    """Raises: ApiError for anything but text."""
    if response_format is None or response_format == {"type": "text"}:
        return
    raise ApiError(
        f"response_format {str(response_format.get('type'))[:40]!r} is not supported; leave it out",
        code="unsupported_parameter",
        param="response_format",
    )
