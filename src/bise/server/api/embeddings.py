"""POST /v1/embeddings: the mean of a text's last hidden states, brought to length 1."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from .. import limits
from ..faults import Fault, refusals
from ..wire import Ask
from . import models, replies
from .answers import Answer, Answers, usage
from .aside import aside
from .body import Route, Strict
from .completions import Prompt
from .events import unless_gone
from .prompts import prompts_of
from .settings import Name

router = APIRouter(route_class=Route, tags=["embeddings"])


class EmbeddingRequest(Strict):
    input: Prompt
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Any, WithJsonSchema({"type": "null", "description": "Refused: vectors are not cut."})] = None
    user: Name | None = None
    cache_salt: Name | None = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


@router.post(
    "/v1/embeddings", response_model=None,
    responses={200: {"model": Embeddings}, **refusals(400, 401, 403, 404, 413, 429, 500, 503)},
)  # fmt: skip
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Texts as vectors (OpenAI's embeddings API)."""
    desk = request.app.state.desk
    adapter = models.check(desk, body.model)
    if body.dimensions is not None:
        raise Fault(400, f"dimensions is refused: a vector here has {desk.config.dim} numbers", "dimensions")
    given = prompts_of(body.input, desk.vocab_size, "input", limits.INPUTS)
    for text in given:
        if isinstance(text, str):
            replies.check_length(desk, len(text))

    def encoded() -> list[list[int]]:
        return [desk.tokenizer.encode(g, bos=True) if isinstance(g, str) else g for g in given]

    prompts = await aside(sum(map(len, given)), encoded)
    who = replies.who(request, body.cache_salt, adapter)
    asks = [
        Ask(p, replies.room(desk, p, 0), embed=True, client=who.client, salt=who.salt, adapter=who.adapter)
        for p in prompts
    ]
    answers = await unless_gone(request.receive, Answers(desk, asks).whole())
    read = usage(answers)["prompt_tokens"]
    head: dict[str, Any] = {
        "object": "list",
        "model": body.model or desk.name,
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "data": [],
    }
    content = await aside(len(answers) * desk.config.dim, _written, head, answers, body.encoding_format)
    return Response(content, media_type="application/json")


def _written(head: dict[str, Any], answers: Sequence[Answer], form: str | None) -> bytes:
    """The whole as JSON, written vector by vector: one call for a quarter of a million numbers would hold up the loop,
    in whatever thread it is made."""
    vectors = (
        json.dumps({"object": "embedding", "index": i, "embedding": written(a.embedding or [], form)})
        for i, a in enumerate(answers)
    )
    return (json.dumps(head).removesuffix("]}") + ",".join(vectors) + "]}").encode()


def written(vector: list[float], form: str | None) -> list[float] | str:
    """(dim,) at length 1, as numbers or as base64 of little-endian float32."""
    v = np.array(vector, np.float64)
    v = (v / max(float(np.linalg.norm(v)), 1e-12)).astype("<f4")
    return base64.b64encode(v.tobytes()).decode() if form == "base64" else [float(x) for x in v]
