"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import limits
from ..faults import Fault, refusals
from . import models, replies
from .answers import Answer, Answers, numbers, timings, usage
from .aside import aside
from .body import Route
from .events import DONE, Events, event, unless_gone
from .pieces import Pieces
from .replies import Reply, Who, Wish
from .settings import Settings, nth

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, tags=["chat"])

TEXT = {"type": "object", "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": TEXT}, {"type": "null"}]},
        "prefix": {"type": "boolean", "description": "Last message of the assistant: it is continued."},
        "tool_calls": {"anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
        "tool_call_id": {"type": "string"},
        "name": {"type": "string"},
    },
}
Message = Annotated[dict[str, Any], WithJsonSchema(MESSAGE)]
Bare = dict[str, Any]


class ChatRequest(Settings):
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES)] = Field(
        description="Neighbours of one role are merged. The system prompt goes where the model's format puts it: with "
        "the first user message in Mistral's v1, with the last one in v2 and v3."
    )
    max_tokens: Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)] | None = Field(
        None, description="Without it, as many as the context has room for."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)] | None = Field(
        None, description="The same as max_tokens, whose place it takes."
    )
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.LOGPROBS)] | None = None
    response_format: Bare | None = Field(
        None, description='{"type": "text" | "json_object" | "json_schema" | "regex" | "grammar", ...}'
    )
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | Bare | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    # OpenAI's, which change nothing here
    metadata: Bare | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: Bare | None = None
    # OpenAI's, of which only one value can be served
    modalities: list[Literal["text"]] | None = Field(None, description='Only ["text"].')
    reasoning_effort: Literal["none"] | None = Field(None, description="This model does not reason apart.")
    verbosity: Literal["medium"] | None = None


class ChatLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[dict[str, Any]]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]


class Function(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: models.Usage
    timings: models.Timings


@router.post(
    "/v1/chat/completions", response_model=None,
    responses={200: models.streamed(ChatCompletion), **refusals(400, 401, 403, 404, 413, 429, 500, 503)},
)  # fmt: skip
async def chat(request: Request, body: ChatRequest) -> Response:
    """Reply to a conversation (OpenAI's chat completions API)."""
    desk = request.app.state.desk
    wish = _wish(desk, body, replies.who(request, body.cache_salt, models.check(desk, body.model)))
    first = await replies.ask(desk, wish)
    asks = [replace(first, sampling=nth(first.sampling, i)) for i in range(body.choices)]
    answers = Answers(desk, asks)
    heard = [Reply(desk, wish, answer) for answer in answers.all]
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
        "model": body.model or desk.name, "system_fingerprint": f"bise-{desk.fingerprint[:12]}",
    }  # fmt: skip
    pieces = [Pieces(desk.tokenizer, start=first.start) if body.logprobs else None for _ in asks]
    if body.stream:
        return Events(_stream(head | {"object": "chat.completion.chunk"}, body, answers, heard, pieces))
    await unless_gone(request.receive, _listen(answers, heard))
    return JSONResponse(await aside(numbers(answers.all), _whole, head, answers.all, heard, pieces))


def _wish(desk: Desk, body: ChatRequest, who: Who) -> Wish:
    if body.top_logprobs is not None and not body.logprobs:
        raise Fault(400, "top_logprobs is given without logprobs: true", "top_logprobs")
    return Wish(
        messages=body.messages, tools=body.tools or (), tool_choice=body.tool_choice or "auto",
        most_calls=1 if body.parallel_tool_calls is False else limits.CALLS, form=body.response_format,
        max_tokens=body.max_completion_tokens or body.max_tokens, sampling=body.sampling(desk), stop=body.stops,
        ignore_eos=bool(body.ignore_eos), alternatives=(body.top_logprobs or 0) if body.logprobs else None,
        who=who,
    )  # fmt: skip


async def _listen(answers: Answers, heard: Sequence[Reply]) -> None:
    async with aclosing(answers.each()) as each:
        async for i, news in each:
            heard[i].hear(news)


def _whole(
    head: dict[str, Any], answers: Sequence[Answer], heard: Sequence[Reply], pieces: Sequence[Pieces | None]
) -> dict[str, Any]:
    choices = [_choice(i, reply, shown) for i, (reply, shown) in enumerate(zip(heard, pieces, strict=True))]
    return head | {"choices": choices, "usage": usage(answers, len(heard)), "timings": timings(answers)}


def _choice(i: int, reply: Reply, pieces: Pieces | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.calls:
        message |= {"content": reply.text or None, "tool_calls": reply.calls}
    logprobs = {"content": pieces.chat(reply.answer.tokens)} if pieces else None
    return {"index": i, "message": message, "logprobs": logprobs, "finish_reason": reply.finish}


async def _stream(
    head: dict[str, Any], body: ChatRequest, answers: Answers, heard: Sequence[Reply], pieces: Sequence[Pieces | None]
) -> AsyncGenerator[bytes, None]:
    options = body.options
    if options.include_usage:
        head = head | {"usage": None}
    for i in range(len(heard)):
        yield _chunk(head, i, {"role": "assistant", "content": ""})
    async with aclosing(answers.each()) as each:
        async for i, news in each:
            reply, shown = heard[i], pieces[i]
            text = reply.hear(news)
            if options.include_progress and not reply.answer.tokens:
                yield event(head | {"choices": [], "progress": {"index": i, **reply.answer.progress}})
            logprobs = {"content": shown.chat(news.tokens)} if shown and news.tokens else None
            if text or logprobs:
                yield _chunk(head, i, {"content": text}, logprobs)
            if news.finish:
                for line in _end(head, i, reply):
                    yield line
    if options.include_usage:
        yield event(head | {"choices": [], "usage": usage(answers.all, len(heard)), "timings": timings(answers.all)})
    yield DONE


def _end(head: dict[str, Any], i: int, reply: Reply) -> list[bytes]:
    calls = [_chunk(head, i, {"tool_calls": [{"index": k, **call}]}) for k, call in enumerate(reply.calls)]
    return [*calls, _chunk(head, i, {}, None, reply.finish)]


def _chunk(
    head: dict[str, Any],
    i: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish: str | None = None,
) -> bytes:
    return event(head | {"choices": [{"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]})
