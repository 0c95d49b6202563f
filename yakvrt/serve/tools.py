"""Functions that a model may call."""

from __future__ import annotations

from yakvrt.serve.errors import ApiError
from yakvrt.serve.schema import ChatRequest


def check_tools(asked: ChatRequest) -> None:
    """Raises: ApiError where some are given, and may be called."""
    if asked.tools and asked.tool_choice != "none":
        raise ApiError("tools is not supported; leave it out", code="unsupported_parameter", param="tools")
    if asked.tool_choice not in (None, "none", "auto"):
        raise ApiError("tool_choice needs tools", param="tool_choice")
