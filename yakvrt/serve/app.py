"""The ASGI application: paths, and what every request goes through."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from yakvrt.serve import errors, info
from yakvrt.serve.chat import chat_completions
from yakvrt.serve.completions import completions
from yakvrt.serve.gate import Gate
from yakvrt.serve.metrics import Metrics, metrics
from yakvrt.serve.page import page
from yakvrt.serve.service import Service
from yakvrt.serve.slot_files import delete_file, list_files
from yakvrt.serve.slots import change_slot, list_slots


def make_app(service: Service) -> Starlette:
    """For uvicorn, or to be mounted in another application, whose limits on connections then hold."""
    settings = service.settings
    counted = Metrics(service)
    routes = [
        Route("/health", info.health),
        Route("/v1/health", info.health),
        Route("/v1/models", info.models),
        Route("/models", info.models),
        Route("/v1/models/{name:path}", info.models),
        Route("/props", info.props),
        Route("/v1/embeddings", info.no_embeddings, methods=["POST"]),
        Route("/embeddings", info.no_embeddings, methods=["POST"]),
    ]
    for path, handler in (
        ("/chat/completions", chat_completions),
        ("/completions", completions),
        ("/tokenize", info.tokenize),
        ("/detokenize", info.detokenize),
        ("/apply-template", info.apply_template),
    ):
        routes.append(Route(path, handler, methods=["POST"]))
        if path.endswith("completions"):
            routes.append(Route(f"/v1{path}", handler, methods=["POST"]))
    if settings.has_metrics:
        routes.append(Route("/metrics", metrics))
    if settings.has_slots:
        routes.append(Route("/slots", list_slots))
        routes.append(Route("/slots/files", list_files))
        routes.append(Route("/slots/files/{name}", delete_file, methods=["DELETE"]))
        routes.append(Route("/slots/{number}", change_slot, methods=["POST"]))
    if settings.has_page:
        routes.append(Route("/", page))
    middleware = [Middleware(Gate, settings=settings, responded=counted.responded)]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key"],
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            errors.ApiError: errors.on_api_error,
            HTTPException: errors.on_http_error,
            Exception: errors.on_bug,
        },
    )
    app.state.service, app.state.metrics = service, counted
    return app
