"""POST /v1/responses (OpenAI's responses API); GET and DELETE of those that are kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import limits
from ..faults import Fault, refusals
from . import items, models, replies
from .answers import Answer, Answers, usage
from .body import Route
from .events import Events, event, unless_gone
from .items import call_item, text_item, text_part
from .kept import Kept
from .pieces import Pieces
from .replies import Reply, Wish
from .settings import Settings

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, tags=["responses"])
Bare = dict[str, Any]
Id = Annotated[str, Field(max_length=limits.NAME)]
ENDS = ("response.completed", "response.incomplete")
LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(Settings):
    input: str | list[Any] = Field(description="A text, or items: messages, function_call, function_call_output.")
    instructions: str | None = Field(None, description="A system prompt, for this response only.")
    previous_response_id: Id | None = Field(None, description="Go on from this response, if it is still kept.")
    max_output_tokens: Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)] | None = Field(
        None, description="Without it, as many as the context has room for."
    )
    text: Bare | None = Field(None, description='{"format": {"type": "text" | "json_object" | "json_schema", ...}}')
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = Field(None, description="Functions.")
    tool_choice: Literal["auto", "none", "required"] | Bare | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    store: bool | None = Field(True, description="Keep it in memory, for previous_response_id and GET.")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.LOGPROBS)] | None = None
    metadata: Bare | None = None
    # OpenAI's, which change nothing here
    max_tool_calls: int | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # OpenAI's, of which only one value can be served
    n: Literal[1] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = Field(None, description="Nothing is ever cut silently.")
    reasoning: Bare | None = Field(None, description='Only {"effort": "none"}: this model does not reason apart.')


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    previous_response_id: str | None


class Deleted(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


@router.post(
    "/v1/responses", response_model=None,
    responses={200: models.streamed(ResponseObject), **refusals(400, 401, 403, 404, 413, 429, 500, 503)},
)  # fmt: skip
async def create(request: Request, body: ResponsesRequest) -> Response:
    """Reply to items (OpenAI's responses API)."""
    desk, kept = request.app.state.desk, request.app.state.responses
    who = replies.who(request, body.cache_salt, models.check(desk, body.model))
    before: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        found = kept.get(who.client, body.previous_response_id)
        if found is None:
            raise _missing(400, body.previous_response_id, "previous_response_id")
        before = found.messages
    messages = [*before, *items.messages_of(body.input)]
    wish = _wish(desk, body, messages, who)
    answers = Answers(desk, [await replies.ask(desk, wish)])
    pieces = Pieces(desk.tokenizer, start=True) if wish.alternatives is not None else None
    work = _Work(_head(desk, body), answers, Reply(desk, wish, answers.all[0]), pieces)

    def keep() -> None:
        if body.store is not False:
            kept.put(who.client, Kept(work.response, messages + items.said(work.reply)))

    if body.stream:
        return Events(_stream(work, keep))
    await unless_gone(request.receive, _whole(work))
    keep()
    return JSONResponse(work.response)


@router.get("/v1/responses/{id}", response_model=None,
            responses={200: {"model": ResponseObject}, **refusals(400, 401, 403, 404)})  # fmt: skip
async def get(request: Request, id: Id) -> Response:
    """A response that is kept."""
    found = request.app.state.responses.get(replies.who(request, None).client, id)
    if found is None:
        raise _missing(404, id, "id")
    return JSONResponse(found.response)


@router.delete("/v1/responses/{id}", response_model=None,
               responses={200: {"model": Deleted}, **refusals(400, 401, 403, 404)})  # fmt: skip
async def delete(request: Request, id: Id) -> Response:
    """Forget a response."""
    if not request.app.state.responses.drop(replies.who(request, None).client, id):
        raise _missing(404, id, "id")
    return JSONResponse({"id": id, "object": "response", "deleted": True})


def _missing(status: int, id: str, param: str) -> Fault:
    kept = f"the latest {limits.RESPONSES} are kept, until the server stops"
    return Fault(status, f"response {id!r:.80} is not kept (any more): {kept}", param, "response_not_found")


def _wish(desk: Desk, body: ResponsesRequest, messages: list[dict[str, Any]], who: replies.Who) -> Wish:
    if body.reasoning and any(v not in (None, "none") for v in body.reasoning.values()):
        raise Fault(400, "reasoning is not null, and this model does not reason apart: leave it out", "reasoning")
    logprobs = LOGPROBS in (body.include or ()) or body.top_logprobs is not None
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    return Wish(
        messages=system + messages, tools=items.tools_of(body.tools or ()), tool_choice=_choice(body.tool_choice),
        most_calls=1 if body.parallel_tool_calls is False else limits.CALLS, form=_form(body.text),
        max_tokens=body.max_output_tokens, sampling=body.sampling(desk), stop=body.stops,
        ignore_eos=bool(body.ignore_eos), alternatives=(body.top_logprobs or 0) if logprobs else None, who=who,
    )  # fmt: skip


def _form(text: Bare | None) -> dict[str, Any] | None:
    """text.format -> response_format, whose json_schema is one level deeper."""
    form = (text or {}).get("format")
    if form is not None and not isinstance(form, dict):
        raise Fault(400, "text.format is no object", "text.format")
    if form and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    return form


def _choice(choice: str | Bare | None) -> str | dict[str, Any]:
    if not isinstance(choice, dict):
        return choice or "auto"
    if choice.get("type") != "function":
        raise Fault(400, f"tool_choice has type {choice.get('type')!r:.40}, expected function", "tool_choice")
    return {"function": {"name": choice.get("name")}}


# --- the response


@dataclass
class _Work:
    """A response in the making."""

    response: dict[str, Any]
    answers: Answers
    reply: Reply
    pieces: Pieces | None


def _head(desk: Desk, body: ResponsesRequest) -> dict[str, Any]:
    return {
        "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "status": "in_progress",
        "background": False, "completed_at": None, "error": None, "incomplete_details": None,
        "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls, "metadata": body.metadata or {}, "output": [],
        "model": body.model or desk.name,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id, "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier, "service_tier": "default", "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **(body.text or {})}, "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [], "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": "disabled", "usage": None, "user": body.user,
    }  # fmt: skip


def _finish(work: _Work, output: list[dict[str, Any]]) -> None:
    """The response gets what it ends with."""
    cut = work.reply.finish == "length"
    work.response |= {
        "status": "incomplete" if cut else "completed", "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "output": output,
        "usage": _usage(work.reply.answer),
    }  # fmt: skip


def _usage(answer: Answer) -> dict[str, Any]:
    counted = usage([answer])
    return {
        "input_tokens": counted["prompt_tokens"], "output_tokens": counted["completion_tokens"],
        "total_tokens": counted["total_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "input_tokens_details": {"cached_tokens": answer.reused, "cache_write_tokens": 0},
    }  # fmt: skip


async def _whole(work: _Work) -> None:
    async for _ in _events(work):
        pass


async def _stream(work: _Work, keep: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    """The events, numbered. What fails after the beginning is the last of them: response.failed."""
    number = 0
    async with aclosing(_events(work)) as events:
        try:
            async for kind, data in events:
                if kind in ENDS:
                    keep()  # before anyone can ask for it
                yield event({"type": kind, "sequence_number": number, **data}, kind)
                number += 1
        except Exception as error:
            fault = Fault.of(error)
            code = "server_error" if fault.status_code >= 500 else "invalid_prompt"
            failed = work.response | {"status": "failed", "error": {"code": code, "message": fault.message}}
            yield event({"type": "response.failed", "sequence_number": number, "response": failed}, "response.failed")


async def _events(work: _Work) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """(type, data), in the order that OpenAI documents; the response is whole when they end."""
    for kind in ("response.created", "response.in_progress"):
        yield kind, {"response": dict(work.response)}
    text, reply = _Text(), work.reply
    async with aclosing(work.answers.each()) as each:
        async for _, news in each:
            new = reply.hear(news)
            shown = work.pieces.chat(news.tokens) if work.pieces else []
            if new or (news.finish and not reply.calls):
                for one in text.more(new, shown):
                    yield one
    status = "incomplete" if reply.finish == "length" else "completed"
    for one in text.end(status):
        yield one
    output = [text.item] if text.item else []
    for call in reply.calls:
        for one in _call(call, len(output)):
            yield one
        output.append(one[1]["item"])
    _finish(work, output)
    yield f"response.{status}", {"response": work.response}


class _Text:
    """The message of a response, as events."""

    def __init__(self) -> None:
        self.item: dict[str, Any] | None = None  # None: nothing has been said
        self._text, self._logprobs = "", list[dict[str, Any]]()

    def more(self, new: str, logprobs: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.item is None:
            self.item = text_item("in_progress", [])
            yield "response.output_item.added", {"output_index": 0, "item": dict(self.item)}
            yield "response.content_part.added", self._at | {"part": text_part("")}
        self._text += new
        self._logprobs += logprobs
        if new:
            yield "response.output_text.delta", self._at | {"delta": new, "logprobs": logprobs}

    def end(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.item is None:
            return
        part = text_part(self._text, self._logprobs)
        self.item = text_item(status, [part], self.item["id"])
        yield "response.output_text.done", self._at | {"text": self._text, "logprobs": self._logprobs}
        yield "response.content_part.done", self._at | {"part": part}
        yield "response.output_item.done", {"output_index": 0, "item": self.item}

    @property
    def _at(self) -> dict[str, Any]:
        return {"item_id": self.item["id"] if self.item else "", "output_index": 0, "content_index": 0}


def _call(call: dict[str, Any], index: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A function call: what it calls is known when it is over, so its arguments come in one piece."""
    item = call_item(call)
    at = {"item_id": item["id"], "output_index": index}
    yield "response.output_item.added", {"output_index": index, "item": call_item(call, "in_progress", item["id"])}
    yield "response.function_call_arguments.delta", at | {"delta": item["arguments"]}
    yield "response.function_call_arguments.done", at | {"arguments": item["arguments"], "name": item["name"]}
    yield "response.output_item.done", {"output_index": index, "item": item}
