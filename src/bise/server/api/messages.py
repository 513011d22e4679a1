"""POST /v1/messages and /v1/messages/count_tokens (Anthropic's messages API)."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import limits
from ..faults import AnthropicError, Fault, refusals
from . import content, models, replies
from .answers import Answers
from .body import Route
from .events import Events, event, unless_gone
from .replies import Reply, Wish
from .settings import Settings, Stop

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, tags=["messages"])
Bare = dict[str, Any]


class Conversation(Settings):
    """What messages and count_tokens share."""

    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MESSAGES)] = Field(
        description="Of user and assistant; content is a text, or blocks: text, tool_use, tool_result. A last message "
        "of the assistant is continued."
    )
    system: str | list[Any] | None = Field(None, description="A text, or text blocks.")
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = None
    tool_choice: Bare | None = None
    output_config: Bare | None = Field(None, description='{"format": {"type": "json_schema", "schema": {...}}}')
    # Anthropic's, which change nothing here
    cache_control: Bare | None = None
    metadata: Bare | None = None
    service_tier: str | None = None
    # of which only one value can be served
    n: Literal[1] | None = None
    thinking: Bare | None = Field(None, description='Only {"type": "disabled"}.')


class MessagesRequest(Conversation):
    max_tokens: Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)]
    stop_sequences: Annotated[list[Stop], Field(max_length=limits.STOPS)] | None = None


class Count(BaseModel):
    input_tokens: int


class AnthropicUsage(BaseModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageObject(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage


@router.post(
    "/v1/messages", response_model=None,
    responses={
        200: models.streamed(MessageObject),
        **refusals(400, 401, 403, 404, 413, 429, 500, 503, shape=AnthropicError),
    },
)  # fmt: skip
async def create(request: Request, body: MessagesRequest) -> Response:
    """Reply to a conversation (Anthropic's messages API)."""
    desk = request.app.state.desk
    adapter = models.check(desk, body.model)
    wish = _wish(desk, body)
    wish.max_tokens, wish.stop = body.max_tokens, [*body.stops, *(body.stop_sequences or ())]
    wish.who = replies.who(request, body.cache_salt, adapter)
    answers = Answers(desk, [await replies.ask(desk, wish)])
    reply = Reply(desk, wish, answers.all[0])
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant",
            "model": body.model or desk.name}  # fmt: skip
    if body.stream:
        return Events(_stream(head, answers, reply, wish))
    return JSONResponse(await unless_gone(request.receive, _whole(head, answers, reply, wish)))


@router.post(
    "/v1/messages/count_tokens", response_model=None,
    responses={200: {"model": Count}, **refusals(400, 401, 403, 404, 413, shape=AnthropicError)},
)  # fmt: skip
async def count_tokens(request: Request, body: Conversation) -> Response:
    """How many tokens the conversation is, as it would be read."""
    desk = request.app.state.desk
    models.check(desk, body.model)
    wish = _wish(desk, body)
    replies.check_tools(wish.tools)
    tools = list(wish.tools) if wish.calls else None
    ids = await anyio.to_thread.run_sync(replies.chat_format(desk).encode, wish.messages, tools)
    return JSONResponse({"input_tokens": len(ids)})


def _wish(desk: Desk, body: Conversation) -> Wish:
    if body.thinking and body.thinking.get("type") != "disabled":
        raise Fault(400, "thinking is asked for, and this model does not think apart: leave it out", "thinking")
    choice, several = content.choice_of(body.tool_choice)
    return Wish(
        messages=content.conversation(body.system, body.messages), tools=content.tools_of(body.tools or ()),
        tool_choice=choice, most_calls=limits.CALLS if several else 1, form=_form(body.output_config),
        sampling=body.sampling(desk), ignore_eos=bool(body.ignore_eos),
    )  # fmt: skip


def _form(config: Bare | None) -> dict[str, Any] | None:
    """output_config.format -> response_format."""
    form = (config or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise Fault(400, "output_config.format is not of type json_schema", "output_config")
    return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}


# --- the message


async def _whole(head: dict[str, Any], answers: Answers, reply: Reply, wish: Wish) -> dict[str, Any]:
    async with aclosing(answers.each()) as each:
        async for _, news in each:
            reply.hear(news)
    texts = [{"type": "text", "text": reply.text}] if reply.text else []
    tools = [_tool_use(call) | {"input": json.loads(call["function"]["arguments"])} for call in reply.calls]
    return head | {"content": [*texts, *tools], **_reason(reply, wish), "usage": _usage(reply)}


async def _stream(head: dict[str, Any], answers: Answers, reply: Reply, wish: Wish) -> AsyncGenerator[bytes, None]:
    start: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(reply)}
    yield _event("message_start", message=head | start)
    yield _event("ping")
    spoken = False
    async with aclosing(answers.each()) as each:
        async for _, news in each:
            if text := reply.hear(news):
                if not spoken:
                    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
                spoken = True
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    if spoken:
        yield _event("content_block_stop", index=0)
    for i, call in enumerate(reply.calls):
        for line in _call(call, i + spoken):
            yield line
    yield _event("message_delta", delta=_reason(reply, wish), usage=_usage(reply))
    yield _event("message_stop")


def _call(call: dict[str, Any], index: int) -> Iterator[bytes]:
    """A tool call: what it calls is known when it is over, so its input comes in one piece."""
    delta = {"type": "input_json_delta", "partial_json": call["function"]["arguments"]}
    yield _event("content_block_start", index=index, content_block=_tool_use(call))
    yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _event(kind: str, **data: Any) -> bytes:
    return event({"type": kind, **data}, kind)


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}


def _reason(reply: Reply, wish: Wish) -> dict[str, Any]:
    """Why it ended. A stop string of the model's own template is the end of its turn."""
    stop = reply.answer.stop if reply.answer.stop in wish.stop else None
    usual = {"tool_calls": "tool_use", "length": "max_tokens"}.get(reply.finish, "end_turn")
    return {"stop_reason": "stop_sequence" if stop and not reply.calls else usual, "stop_sequence": stop}


def _usage(reply: Reply) -> dict[str, Any]:
    """input_tokens are those that had to be read."""
    answer = reply.answer
    return {
        "input_tokens": len(answer.ask.prompt) - answer.reused, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.reused, "output_tokens": len(answer.tokens),
    }  # fmt: skip
