"""What the server tells of itself and its model: /health, /v1/models, /props, /tokenize and the like."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.errors import ApiError, json_response
from yakvrt.serve.messages import check_template_kwargs, template_messages
from yakvrt.serve.schema import SAMPLING, ChatRequest
from yakvrt.serve.service import Service
from yakvrt.serve.settings import MAX_TEXT_CHARS, MAX_TOKENS


class TokenizeRequest(msgspec.Struct):
    """llama.cpp's fields and defaults."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(msgspec.Struct):
    """Of /detokenize."""

    tokens: list[int]


async def health(http: Request) -> Response:
    """200 once answers can be given."""
    _ = http.app.state.service.model
    return json_response({"status": "ok"})


async def models(http: Request) -> Response:
    """The one model there is, under the name that answers carry."""
    model = http.app.state.service.model
    config = model.engine.config
    meta = {
        "n_ctx": model.engine.ctx_size,
        "n_ctx_train": config.context_len,
        "n_vocab": config.vocab_size,
        "n_embd": config.hidden_dim,
        "size": model.engine.weight_bytes,
    }
    entry = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "yakvrt",
        "meta": meta,
    }
    name = http.path_params.get("name")
    if name is None:
        return json_response({"object": "list", "data": [entry]})
    if name != model.name:
        raise ApiError(
            f"there is no model {name[:100]!r}, only {model.name}", status=404, code="model_not_found"
        )
    return json_response(entry)


async def props(http: Request) -> Response:
    """llama.cpp's fields, as far as they mean something here."""
    from yakvrt import __version__

    model = http.app.state.service.model
    defaults = model.defaults
    params = {name: getattr(defaults, name) for name in SAMPLING if name != "seed"}
    return json_response(
        {
            "default_generation_settings": {"n_ctx": model.engine.ctx_size, "params": params},
            "total_slots": model.engine.n_slots,
            "model_alias": model.name,
            "chat_template": model.tokenizer.chat_template,
            "build_info": f"yakvrt {__version__}",
            "kv": model.scheduler.kv,
        }
    )


async def tokenize(http: Request) -> Response:
    """Text to ids."""
    service: Service = http.app.state.service
    tokenizer = service.model.tokenizer
    asked = as_struct(await read_object(http, service.settings.max_body_bytes), TokenizeRequest)
    if len(asked.content) > MAX_TEXT_CHARS:
        raise ApiError(
            f"content has {len(asked.content)} characters, at most {MAX_TEXT_CHARS} are taken; send parts",
            status=413,
            code="request_too_large",
            param="content",
        )

    def encoded() -> Response:
        ids = tokenizer.encode(
            asked.content, add_special=asked.add_special, parse_special=asked.parse_special
        )
        if not asked.with_pieces:
            return json_response({"tokens": ids})
        return json_response(
            {"tokens": [{"id": token, "piece": _piece(tokenizer.token_bytes(token))} for token in ids]}
        )

    try:
        return await service.texts.run(encoded)
    except ValueError as error:
        raise ApiError(str(error), param="content") from None


def _piece(piece: bytes) -> str | list[int]:
    """As llama.cpp tells it: text, or bytes that are none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(http: Request) -> Response:
    """Ids to text."""
    service: Service = http.app.state.service
    model = service.model
    asked = as_struct(await read_object(http, service.settings.max_body_bytes), DetokenizeRequest)
    if len(asked.tokens) > MAX_TOKENS:
        raise ApiError(
            f"tokens has {len(asked.tokens)} entries, at most {MAX_TOKENS} are taken", param="tokens"
        )
    n_vocab = model.engine.config.vocab_size
    if wrong := [token for token in asked.tokens if not 0 <= token < n_vocab]:
        raise ApiError(f"tokens holds {wrong[0]}; token ids run from 0 to {n_vocab - 1}", param="tokens")
    try:
        text = await service.texts.run(model.tokenizer.decode, asked.tokens, skip_special=False)
    except ValueError as error:
        raise ApiError(str(error), param="tokens") from None
    return json_response({"content": text})


async def apply_template(http: Request) -> Response:
    """The prompt that the messages of a request for a chat become."""
    service: Service = http.app.state.service
    model = service.model
    asked = as_struct(await read_object(http, service.settings.max_body_bytes), ChatRequest)
    check_template_kwargs(asked.chat_template_kwargs)
    messages = template_messages(asked.messages)

    def rendered() -> str:
        return model.tokenizer.render_chat(messages, tools=asked.tools or None, **asked.chat_template_kwargs)

    try:
        return json_response({"prompt": await service.texts.run(rendered)})
    except (ValueError, TypeError) as error:  # arguments of calls may hold half a surrogate pair, too
        raise ApiError(str(error), param="messages") from None


async def no_embeddings(http: Request) -> Response:
    """Refuses."""
    raise ApiError("this server computes no embeddings", status=501, code="not_supported")
