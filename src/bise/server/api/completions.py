"""POST /v1/completions: texts and ids continued, or scored (echo with logprobs)."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import limits
from ..faults import Fault, refusals
from ..wire import Ask, Token
from . import models, replies
from .answers import Answer, Answers, numbers, timings, usage
from .aside import aside
from .body import Route
from .events import DONE, Events, event, unless_gone
from .pieces import Pieces
from .prompts import prompts_of
from .settings import Settings, nth

if TYPE_CHECKING:
    from ..desk import Desk

_SMILE = "☺"  # in front of a suffix that must not begin with the vocabulary's own space; then taken away

router = APIRouter(route_class=Route, tags=["completions"])

Prompt = Annotated[
    Any,
    WithJsonSchema({
        "description": f"A text, a list of token ids, or a list of up to {limits.PROMPTS} of one of these.",
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": limits.PROMPTS},
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
             "minItems": 1, "maxItems": limits.PROMPTS},
        ],
    }),
]  # fmt: skip


class CompletionRequest(Settings):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)] | None = Field(
        limits.COMPLETION_TOKENS, description="0: the prompt is only read (with echo and logprobs: scored)."
    )
    echo: bool | None = Field(False, description="The text begins with the prompt.")
    logprobs: Annotated[int, Field(ge=0, le=limits.LOGPROBS)] | None = Field(
        None, description="So many alternatives for each token; with echo for the prompt's tokens too."
    )
    best_of: Annotated[int, Field(ge=1, le=limits.CHOICES)] | None = Field(None, description="Has to be n.")
    suffix: str | None = Field(None, description="Text after the gap that is to be filled (Codestral's vocabulary).")


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: models.Usage
    timings: models.Timings


@dataclass
class Work:
    """One request at work: its prompts as text (where echo shows them) and what was asked of the engine."""

    desk: Desk
    body: CompletionRequest
    echoes: list[str]  # one for each ask, "" without echo
    asks: list[Ask]

    def __post_init__(self) -> None:
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": self.body.model or self.desk.name,
        }  # fmt: skip

    def pieces(self) -> Pieces | None:
        if self.body.logprobs is None:
            return None
        return Pieces(self.desk.tokenizer, start=bool(self.body.echo))


@router.post(
    "/v1/completions", response_model=None,
    responses={200: models.streamed(Completion), **refusals(400, 401, 403, 404, 413, 429, 500, 503)},
)  # fmt: skip
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue texts (OpenAI's completions API)."""
    desk = request.app.state.desk
    work = await _work(desk, body, replies.who(request, body.cache_salt, models.check(desk, body.model)))
    answers = Answers(desk, work.asks)
    if body.stream:
        return Events(_stream(work, answers))
    heard = await unless_gone(request.receive, answers.whole())
    return JSONResponse(await aside(numbers(heard), _whole, work, heard))


async def _work(desk: Desk, body: CompletionRequest, who: replies.Who) -> Work:
    if body.best_of not in (None, body.choices):
        raise Fault(400, f"best_of is {body.best_of}, expected {body.choices}, which n is: all answers are given",
                    "best_of")  # fmt: skip
    given = prompts_of(body.prompt, desk.vocab_size, "prompt")
    for prompt in given:
        if isinstance(prompt, str):
            replies.check_length(desk, len(prompt))
    prompts, echoes = await aside(sum(map(len, given)), _encoded, desk, body, given)
    sampling, most = body.sampling(desk), limits.COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    asks = [
        Ask(
            prompt, replies.room(desk, prompt, most), nth(sampling, i), body.stops, _past_the_end(body, most),
            alternatives=body.logprobs, score=body.logprobs if body.echo else None, client=who.client,
            salt=who.salt, adapter=who.adapter,
        ) for prompt in prompts for i in range(body.choices)
    ]  # fmt: skip
    return Work(desk, body, [e for e in echoes for _ in range(body.choices)], asks)


def _past_the_end(body: CompletionRequest, most: int) -> bool:
    """Who scores a text asks for one token more and takes the last place for it: it has to be there, the end too."""
    return bool(body.ignore_eos) or (bool(body.echo) and body.logprobs is not None and most == 1)


def _encoded(
    desk: Desk, body: CompletionRequest, given: Sequence[str | list[int]]
) -> tuple[list[list[int]], list[str]]:
    """Prompts as ids, and as the text that echo puts in front."""
    if body.suffix is not None:
        prompts = [_around(desk, p, body.suffix) for p in given]
    else:
        prompts = [desk.tokenizer.encode(p, bos=True) if isinstance(p, str) else p for p in given]
    if not body.echo:
        return prompts, [""] * len(prompts)
    return prompts, [p if isinstance(p, str) else desk.tokenizer.decode(p) for p in given]


def _around(desk: Desk, prompt: str | list[int], suffix: str) -> list[int]:
    """Fill in the middle, as mistral-common's encode_fim writes it: bos [SUFFIX] suffix [PREFIX] prefix."""
    tokenizer = desk.tokenizer
    marks = [tokenizer.control.get(name) for name in ("[SUFFIX]", "[PREFIX]")]
    if None in marks:
        raise Fault(400, f"suffix needs the control tokens [SUFFIX] and [PREFIX], which {desk.name} has not", "suffix")
    if not isinstance(prompt, str):
        raise Fault(400, "suffix goes with a text as prompt, not with token ids", "suffix")
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    after = tokenizer.encode(_SMILE + suffix)[len(tokenizer.encode(_SMILE)) :]
    return [*bos, marks[0], *after, marks[1], *tokenizer.encode(prompt)]  # type: ignore[list-item]


def _whole(work: Work, answers: Sequence[Answer]) -> dict[str, Any]:
    choices = []
    for i, (answer, echo) in enumerate(zip(answers, work.echoes, strict=True)):
        pieces = work.pieces()
        choices.append({
            "index": i, "text": echo + answer.text,
            "logprobs": pieces.legacy([*answer.scores, *answer.tokens]) if pieces else None,
            "finish_reason": _reason(work, answer),
        })  # fmt: skip
    return work.head | {"choices": choices, "usage": usage(answers, work.body.choices), "timings": timings(answers)}


def _reason(work: Work, answer: Answer) -> str:
    """An end that was told as a token (see `_past_the_end`) is an end all the same."""
    told = answer.ask.ignore_eos and not work.body.ignore_eos and bool(answer.tokens)
    return "stop" if told and answer.tokens[-1].id in work.desk.tokenizer.stop_ids else answer.finish


async def _stream(work: Work, answers: Answers) -> AsyncGenerator[bytes, None]:
    """Chunks of all choices as they come. A prompt that is echoed comes whole; its logprobs come as it is read."""
    options, pieces = work.body.options, [work.pieces() for _ in work.asks]
    echoes: list[str] = list(work.echoes)
    head = work.head | ({"usage": None} if options.include_usage else {})
    async with aclosing(answers.each()) as each:
        async for i, news in each:
            answer = answers.all[i]
            answer.hear(news)
            if options.include_progress and not answer.tokens:
                yield event(head | {"choices": [], "progress": {"index": i, **answer.progress}})
            text, echoes[i] = echoes[i] + news.text, ""
            tokens = [*news.scores, *news.tokens]
            answer.scores.clear()  # they have been told
            if text or news.finish or (tokens and pieces[i]):
                yield event(head | {"choices": [_chunk(work, i, text, tokens, pieces[i], answer)]})
    if options.include_usage:
        last = {"choices": [], "usage": usage(answers.all, work.body.choices), "timings": timings(answers.all)}
        yield event(work.head | last)
    yield DONE


def _chunk(
    work: Work, i: int, text: str, tokens: Sequence[Token], pieces: Pieces | None, answer: Answer
) -> dict[str, Any]:
    return {
        "index": i, "text": text, "logprobs": pieces.legacy(tokens) if pieces else None,
        "finish_reason": _reason(work, answer) if answer.finish else None,
    }  # fmt: skip
