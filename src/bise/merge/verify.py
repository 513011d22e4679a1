"""Verified export: the file that was written is opened, and compared with what was trained: base and adapter, unfused.

What could come between the two, and does in practice: rounding that drowns a small delta, rows in another order, a
lost template, another end-of-text token, another tokenizer. So all of it is looked at, on texts that the trained model
itself continues, and the file is refused if it is not the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..chat import ChatFormat
from ..config import Config
from ..engine import Engine
from ..errors import BiseError
from ..lora import Placed
from ..model import Tap
from ..request import Request
from ..sampler import Sampler, Sampling
from ..score import Divergence
from ..tokenizer import Tokenizer
from ..vocab import UNUSED
from ..weights import Weights

PROMPTS = (  # beginnings of many kinds; what follows them is the trained model's own
    "Once upon a time", "The mistral is a wind that", "Q: What is the capital of France?\nA:", "def add(a, b):",
    "Dear Sir or Madam,", "The three most important things are", "It was late in the evening when", "In 1905,",
)  # fmt: skip
TALK = ({"role": "user", "content": "Why is the sky blue?"},)
SPEAK = 48  # tokens that the trained model says after each prompt
SPELLED = ("Hello, world!", "  two  spaces\n\tand a tab", "1234567890", "naïve café ☕ 北京", "[INST] </s> <s>")


@dataclass(frozen=True)
class Limits:
    """kl        the most KL(trained || exported), nats a token
    share     the most of it, in parts of KL(trained || base), which is how much the adapter does ...
    floor     ... unless it is below this
    same_top  the least share of positions where both find the same token likeliest
    """

    kl: float
    share: float = 0.5
    floor: float = 1e-5
    same_top: float = 0.9


# For exports of one type: of floats six times, of block formats two to five times what merging adapters into puff gave.
# The share is for all adapters: a small one is easily lost in the steps of a block format, however small KL is then.
BY_TYPE = {
    "F32": Limits(1e-6, 0.01, 1e-6, 0.99), "F16": Limits(1e-5, 0.02, 1e-5, 0.98), "BF16": Limits(1e-4, 0.1, 3e-5, 0.98),
    "Q8_0": Limits(4e-3, same_top=0.95), "Q6_K": Limits(1e-2, same_top=0.93), "Q5_K": Limits(2e-2, same_top=0.9),
    "Q4_K": Limits(5e-2, same_top=0.87), "Q3_K": Limits(0.15, same_top=0.8), "Q2_K": Limits(0.4, same_top=0.7),
}  # fmt: skip
OTHERS = Limits(7e-2, same_top=0.85)  # other types of four and five bits
FLOATS = ("F32", "F16", "BF16")
ROUNDED = 2e-3  # activations meet quantised weights as 8-bit integers, float weights as floats: not the export's fault


class Loaded(Protocol):
    """What is looked at: a `bise.Model`, seen from below."""

    config: Config
    weights: Weights
    maybe_tokenizer: Tokenizer | None
    context: int

    def engine(self, sequences: int = 1) -> Engine: ...
    def logits(self, ids: Sequence[int], tap: Tap | None = None, adapter: str | None = "") -> np.ndarray: ...
    def placed(self, name: str | None = "") -> Placed | None: ...


Texts = Sequence[Sequence[int]]


@dataclass
class Seen:
    """What a model says to texts, and of itself.

    logits  (tokens - 1, vocab) for each text, with the adapter; base: without it, where there is one
    facts   what has to be the same in the export, by the words of the card
    """

    texts: Texts
    logits: list[np.ndarray]
    base: list[np.ndarray]
    facts: dict[str, Any]


@dataclass
class Card:
    """What was found. faults: why the export is refused; none: it passes."""

    kl: float
    kl_error: float
    kl_most: float
    same_top: float
    adapter_kl: float | None  # KL(trained || base): what the adapter does; None: there was none
    tokens: int
    limits: Limits
    checks: dict[str, bool]
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults

    def facts(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def limits(types: Iterable[str], base: Iterable[str], kl: float | None = None) -> Limits:
    """The limits for an export whose changed matrices have these types, made of a base of those. kl: in place of the
    usual most."""
    types = list(types)
    found = max((BY_TYPE.get(kind, OTHERS) for kind in types), key=lambda one: one.kl, default=BY_TYPE["F32"])
    if set(types) <= set(FLOATS) and not set(base) <= set(FLOATS):
        found = Limits(max(found.kl, ROUNDED), found.share, ROUNDED, 0.95)
    return found if kl is None else replace(found, kl=kl)


def observe(model: Loaded, texts: Texts | None = None, more: Texts = ()) -> Seen:
    """What the model says, with the adapter that it was loaded with. texts None: its own continuations of `PROMPTS`,
    and `more`, texts of the user's."""
    placed = model.placed()
    if texts is None:
        texts = [*_continued(model, placed), *(text[: model.context] for text in more if len(text) > 1)]
    logits = [model.logits(text)[:-1] for text in texts]
    base = [model.logits(text, adapter=None)[:-1] for text in texts] if placed else []
    return Seen(texts, logits, base, _facts(model))


def verify(trained: Seen, export: Seen, within: Limits) -> Card:
    """The card. Logits are compared at every position of every text."""
    strays = _divergence(trained, export.logits)
    checks = {what: _equal(value, export.facts.get(what)) for what, value in trained.facts.items()}
    adapter_kl = _divergence(trained, trained.base).kl.value if trained.base else None
    card = Card(strays.kl.value, strays.kl.error, strays.largest, strays.same_top.value, adapter_kl, strays.tokens,
                within, checks, [f"{what} differs" for what, same in checks.items() if not same])  # fmt: skip
    if not card.kl <= within.kl:
        card.faults.append(f"KL {card.kl:.2g}, at most {within.kl:.2g} expected")
    if adapter_kl is not None and not card.kl <= max(within.share * adapter_kl, within.floor):
        kept = f"KL {card.kl:.2g}, and the adapter itself changes {adapter_kl:.2g}"
        card.faults.append(f"{kept}: rounding takes more than {within.share:.0%} of what was learnt")
    if not card.same_top >= within.same_top:
        card.faults.append(f"same likeliest token at {card.same_top:.1%}, at least {within.same_top:.0%} expected")
    return card


def _divergence(trained: Seen, logits: Sequence[np.ndarray]) -> Divergence:
    found = Divergence()
    for text, full, other in zip(trained.texts, trained.logits, logits, strict=False):
        found.add(full, other, np.asarray(text[1:], np.int64))
    return found


def _continued(model: Loaded, placed: Placed | None) -> list[list[int]]:
    """The prompts, and what the model says after each, greedily. Without a tokenizer: random ids as prompts."""
    tokenizer, vocab = model.maybe_tokenizer, model.config.vocab_size
    if tokenizer:
        prompts = [tokenizer.encode(prompt, bos=True) for prompt in PROMPTS]
    else:
        prompts = np.random.default_rng(0).integers(3, vocab, (len(PROMPTS), 12)).tolist()
    engine = model.engine(len(prompts))
    room = model.context - max(map(len, prompts))
    requests = [
        Request(ids, Sampler(Sampling(), vocab), max(1, min(SPEAK, room)), sequence=i, adapter=placed)
        for i, ids in enumerate(prompts)
    ]
    for request in requests:
        engine.submit(request)
    while engine.running:
        engine.step()
    for request in requests:
        if request.error:
            raise request.error
    return [request.text for request in requests]


def _facts(model: Loaded) -> dict[str, Any]:
    shape = {key: value for key, value in asdict(model.config).items() if key != "window_reason"}
    tokenizer = model.maybe_tokenizer
    if tokenizer is None:
        return {"shape and window": shape, "tokenizer": None}
    pieces = list(zip(tokenizer.vocab.tokens, tokenizer.vocab.types, strict=True))
    while len(pieces) > 1 and pieces[-1][1] == UNUSED:  # fillers up to the embedding's rows
        pieces.pop()
    chat = ChatFormat.of(model.weights, tokenizer)
    return {
        "shape and window": shape,
        "tokenizer": [pieces, [tokenizer.encode(text, bos=True) for text in SPELLED]],
        "stop tokens": sorted(tokenizer.stop_ids),
        "chat template": chat and [chat.version, _talked(chat)],
    }


def _talked(chat: ChatFormat) -> list[int] | str:
    try:
        return list(chat.encode(TALK))
    except BiseError as error:
        return str(error)


def _equal(a: Any, b: Any) -> bool:
    """Floats to the digits that a GGUF keeps of them."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.float32(a) == np.float32(b))
    return bool(a == b)
