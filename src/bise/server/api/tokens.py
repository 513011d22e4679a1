"""POST /tokenize, /detokenize, /apply-template, and what lm-eval asks about a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import limits
from ..faults import Fault, refusals
from . import models, replies
from .aside import LONG, aside
from .body import Route, Strict
from .chat import Bare, Message
from .prompts import prompts_of
from .settings import Name

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, tags=["tokens"])
Ids = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}})]


class TokenizeRequest(Strict):
    prompt: str | None = Field(None, description="A text, in which no control token can be spelled ...")
    content: str | None = Field(None, description="... under llama.cpp's name ...")
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES)] | None = Field(
        None, description="... or a conversation, as the model's chat format writes it."
    )
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = None
    add_special_tokens: bool | None = Field(None, description="A bos in front of a text, unless this is false.")
    add_special: bool | None = Field(None, description="The same under llama.cpp's name.")
    parse_special: bool | None = Field(
        None, description="true: names of control tokens in the text are those tokens. Without it, only a prompt that "
        "is nothing but the name of bos or eos is that token."
    )  # fmt: skip
    with_pieces: bool | None = Field(False, description="Each token as its vocabulary spells it.")
    model: Name | None = None


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int
    pieces: list[str] | None = None


class DetokenizeRequest(Strict):
    tokens: Ids
    model: Name | None = None


class Text(BaseModel):
    prompt: str
    content: str


class TemplateRequest(Strict):
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES)]
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = None
    model: Name | None = None


class Template(BaseModel):
    prompt: str = Field(description="The conversation as text, control tokens by name.")
    tokens: list[int]
    count: int


class TokenizerInfo(BaseModel):
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: None
    vocab_size: int
    model_max_length: int
    chat_template: str | None


@router.post("/tokenize", response_model=None, responses={200: {"model": Tokens}, **refusals(400, 401, 403, 404, 413)})
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """A text or a conversation as token ids."""
    desk = request.app.state.desk
    models.check(desk, body.model)
    given = [v for v in (body.prompt, body.content, body.messages) if v is not None]
    if len(given) != 1:
        raise Fault(400, f"{len(given)} of prompt, content and messages are given, expected one", "prompt")
    ids = await aside(_size(given[0]), _encoded, desk, body, given[0])
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": desk.context}
    if body.with_pieces:
        answer["pieces"] = [desk.tokenizer.name(i) for i in ids]
    return JSONResponse(answer)


def _size(given: str | list[Any]) -> int:
    return len(given) if isinstance(given, str) else LONG


def _encoded(desk: Desk, body: TokenizeRequest, given: str | list[Any]) -> list[int]:
    if not isinstance(given, str):
        return _conversation(desk, given, body.tools)
    tokenizer = desk.tokenizer
    ends = {tokenizer.name(i): i for i in (tokenizer.bos, tokenizer.eos) if i is not None}
    if body.parse_special is None and given in ends:
        return [ends[given]]
    bos = False not in (body.add_special_tokens, body.add_special)
    return tokenizer.encode(given, bos=bos, special=bool(body.parse_special))


def _conversation(desk: Desk, messages: list[Any], tools: list[Bare] | None) -> list[int]:
    replies.check_tools(tools or ())
    return replies.chat_format(desk).encode(messages, tools)


@router.post("/detokenize", response_model=None, responses={200: {"model": Text}, **refusals(400, 401, 403, 404, 413)})
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Token ids as text; control tokens have none."""
    desk = request.app.state.desk
    models.check(desk, body.model)
    ids: Any = prompts_of(body.tokens, desk.vocab_size, "tokens", most=1)[0] if body.tokens != [] else []
    if not isinstance(ids, list) or ids is not body.tokens:
        raise Fault(400, "tokens: expected a list of token ids", "tokens")
    text = await aside(len(ids), desk.tokenizer.decode, ids)
    return JSONResponse({"prompt": text, "content": text})


@router.post(
    "/apply-template", response_model=None, responses={200: {"model": Template}, **refusals(400, 401, 403, 404, 413)}
)  # fmt: skip
async def apply_template(request: Request, body: TemplateRequest) -> Response:
    """A conversation as the model's chat format writes it."""
    desk = request.app.state.desk
    models.check(desk, body.model)
    ids = await aside(LONG, _conversation, desk, body.messages, body.tools)
    tokenizer = desk.tokenizer
    text = "".join(
        tokenizer.name(i) if tokenizer.is_control(i) else tokenizer.piece(i).decode(errors="replace") for i in ids
    )
    return JSONResponse({"prompt": text, "tokens": ids, "count": len(ids)})


@router.get(
    "/tokenizer_info", response_model=None, responses={200: {"model": TokenizerInfo}, **refusals(400, 401, 403)}
)
async def tokenizer_info(request: Request) -> Response:
    """The ends of the vocabulary by name, for lm-eval's remote tokenizer."""
    desk = request.app.state.desk
    tokenizer = desk.tokenizer
    bos, eos, unk = (None if i is None else tokenizer.name(i) for i in (tokenizer.bos, tokenizer.eos, tokenizer.unk))
    return JSONResponse({
        "bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": None, "vocab_size": desk.vocab_size,
        "model_max_length": desk.context,
        "chat_template": desk.chat_format.template or None if desk.chat_format else None,
    })  # fmt: skip
