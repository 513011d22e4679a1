"""The door for Python: load() -> Model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import lora, panels
from .blocks import Blocks
from .cache import Cache, cache_bytes, whole
from .chat import ChatFormat
from .completion import Completion, Options
from .config import Config
from .engine import Engine
from .errors import FormatError, RequestError, UnsupportedError
from .model import Tap, forward
from .ops import KV_TYPES, Ops, load_ops
from .scout import Scout
from .session import Message, Session
from .tokenizer import Tokenizer
from .weights import Parameters, Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("bise")
BUILT_IN = Path(__file__).parent / "models" / "puff.gguf"


class Model:
    """A model ready to speak: config, weights (as the file has them), tokenizer, chat_format, and one backend.

    Not thread-safe: one caller at a time, like a file object.
    """

    def __init__(self, weights: Weights, config: Config, ops: Ops, context: int, kv: str, lookup: bool = True,
                 progress: Callable[[int, int], None] | None = None, keep_packed: bool = False,
                 draft: Model | None = None) -> None:  # fmt: skip
        """draft: a smaller model on the same backend, to guess ahead."""
        self.weights, self.config, self.ops, self.context, self.kv = weights, config, ops, context, kv
        self.lookup = lookup and ops.exact
        self.path = weights.path
        self.maybe_tokenizer = Tokenizer.of(weights)  # None: a folder without one works for ids
        if self.maybe_tokenizer and self.maybe_tokenizer.vocab_size > config.vocab_size:
            raise FormatError(
                f"{self.path}: the tokenizer has {self.maybe_tokenizer.vocab_size:,} pieces, the embedding "
                f"{config.vocab_size:,} rows: another model's tokenizer"
            )
        self.draft = draft
        if draft:
            self._check_vocabulary(draft)
        self._chat_format = ChatFormat.of(weights, self.maybe_tokenizer) if self.maybe_tokenizer else None
        self.parameters = panels.place(weights, ops, progress) if keep_packed else weights.place(ops, progress)
        self.beside = lora.Adapters(ops, weights, self.parameters)
        self.adapters: dict[str, lora.Placed] = {}  # by name
        self.adapter: str | None = None  # whose adapter is used where a request does not say
        self._scratch: Session | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self.maybe_tokenizer is None:
            raise UnsupportedError(f"{self.path} has no tokenizer: put tokenizer.model beside it, or use token ids")
        return self.maybe_tokenizer

    @property
    def chat_format(self) -> ChatFormat:
        if self._chat_format is None:
            remedy = "use generate, or set chat_format = 'v1'"
            raise UnsupportedError(f"{self.path} has no chat format (a base model): {remedy}")
        return self._chat_format

    @chat_format.setter
    def chat_format(self, name: str) -> None:
        """Speak Mistral's "v1", "v2" or "v3", whatever the files say."""
        self._chat_format = ChatFormat.named(name, self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """How many ids may be sampled: an embedding may be padded with rows that no piece has."""
        return self.maybe_tokenizer.vocab_size if self.maybe_tokenizer else self.config.vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.maybe_tokenizer.stop_ids if self.maybe_tokenizer else frozenset()

    def logits(self, ids: Sequence[int], tap: Tap | None = None, adapter: str | None = "") -> np.ndarray:
        """(T,) ids -> (T, vocab_size) float32, every position; keys and values pass through the model's kv type.
        adapter: as in Options."""
        tokens, (ops, weights) = self._ids(ids), self.spoken(adapter)
        batch = whole(ops, self.config, [len(tokens)], self.kv)
        return self.ops.numpy(forward(ops, self.config, weights, tokens, batch, tap))

    def add_adapter(self, path: str | Path, name: str | None = None, any_base: bool = False) -> str:
        """Put an adapter (a PEFT folder, or a GGUF) beside the weights -> its name, for Options' `adapter`: the file's
        own unless told otherwise. any_base: also one that was trained on other weights of these shapes."""
        name = name or lora.named(path)
        if name in self.adapters:
            raise RequestError(f"adapter {name!r} is there already: remove it first, or give this one another name")
        self.adapters[name] = self.beside.place(lora.read(path, self.weights, any_base), name)
        return name

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; its memory is free once no request uses it."""
        del self.adapters[self._named(name)]
        self.adapter = None if self.adapter == name else self.adapter

    def placed(self, name: str | None = "") -> lora.Placed | None:
        """The adapter of a request. "": the model's own choice; None: none. RequestError for one that is not here."""
        name = self.adapter if name == "" else name
        return None if name is None else self.adapters[self._named(name)]

    def spoken(self, adapter: str | None = "") -> tuple[Ops, Parameters]:
        """The verbs and the weights of a forward pass whose rows all have this adapter: see `placed`."""
        placed = self.placed(adapter)
        return self.beside.everywhere(placed) if placed else (self.ops, self.parameters)

    def _named(self, name: str) -> str:
        if name not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise RequestError(f"adapter {name!r:.80} is not loaded; there is {known}: see add_adapter")
        return name

    def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[str]:
        """Continue a text or ids; yields pieces of text, each valid UTF-8. `Options` lists what may be set."""
        return self._session().again(options, self._prompt(prompt))

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """`stream`, all at once."""
        session = self._session()
        return session.finish(session.again(options, self._prompt(prompt)))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Iterator[str]:
        """The assistant's reply to messages such as {"role": "user", "content": "Why is the sky blue?"}, in pieces."""
        return self._session().again(options, messages=messages)

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Completion:
        """`stream_chat`, all at once."""
        session = self._session()
        return session.finish(session.again(options, messages=messages))

    def engine(self, sequences: int = 1, reuse: int = 0) -> Engine:
        """A cache for so many sequences and the loop around it; the draft model gets a cache of its own there.
        reuse: bytes for keeping what the cache would forget (blocks.py)."""
        cache = Cache(self.ops, self.config, sequences, self.context, self.kv)
        scout = self.draft.scout(sequences, self) if self.draft else None
        blocks = Blocks(cache, reuse) if reuse else None
        return Engine(self.ops, self.config, self.parameters, cache, lookup=self.lookup, scout=scout, blocks=blocks,
                      adapters=self.beside)  # fmt: skip

    def scout(self, sequences: int, other: Model) -> Scout:
        """This model as the one that guesses for the `other`."""
        cache = Cache(self.ops, self.config, sequences, self.context, self.kv)
        return Scout(self.ops, self.config, self.parameters, cache, self.weights.nbytes / other.weights.nbytes)

    def session(self, system: str | None = None) -> Session:
        """A conversation with a cache of its own."""
        return Session(self, system)

    def _session(self) -> Session:
        """The one for single requests; whatever a request shares with the one before is not read again."""
        if self._scratch is None or self._scratch.busy:
            self._scratch = Session(self)
        return self._scratch

    def _check_vocabulary(self, draft: Model) -> None:
        """Its guesses are ids: they have to mean the same here."""
        ours, theirs = (
            (m.config.vocab_size, m.maybe_tokenizer.vocab.tokens if m.maybe_tokenizer else []) for m in (self, draft)
        )
        if ours == theirs:
            return
        odd = next((i for i, (a, b) in enumerate(zip(ours[1], theirs[1])) if a != b), None)  # noqa: B905
        if odd is None:
            how = f"it has {len(theirs[1]):,} pieces and {theirs[0]:,} rows, the model {len(ours[1]):,} and {ours[0]:,}"
        else:
            how = f"its token {odd} is {theirs[1][odd]!r:.40}, the model's {ours[1][odd]!r:.40}"
        raise RequestError(f"draft {draft.path} has another vocabulary ({how}): take one of the same family")

    def _prompt(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt

    def _ids(self, ids: Sequence[int]) -> np.ndarray:
        tokens = np.asarray(ids)
        vocab = self.config.vocab_size
        if tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
            raise RequestError("ids must be a non-empty list of whole numbers")
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise RequestError(f"ids hold {tokens.min()}..{tokens.max()}, expected 0..{vocab - 1}")
        return tokens.astype(np.int32)


def load(path: str | Path | None = None, *, window: int | str | None = None, context: int | None = None,
         kv: str = "f16", threads: int | None = None, backend: str = "cpu", device: str | None = None,
         lookup: bool = True, draft: str | Path | None = None, keep_packed: bool = False, isa: str = "",
         progress: Callable[[int, int], None] | None = None,
         adapter: str | Path | Mapping[str, str | Path] | None = None, any_base: bool = False) -> Model:  # fmt: skip
    """Open a model and place it on a backend.

    path         a .gguf file (any part of a split one), a safetensors folder, a hub id, or None: the built-in model
    window       sliding window in tokens, or "none" for full attention; None: as the model was made
    context      the most tokens of one sequence; None: as the model was made
    kv           how keys and values are kept: "f16", "q8_0" (half of it) or "f32"
    threads      for the cpu backend; None: one per core
    backend      "cpu" | "reference" | "torch"; device is torch's
    lookup       read ahead what the text said before in the same place; the same text, sooner (cpu backend only)
    draft        a smaller model with the same vocabulary that guesses ahead; the same text, sooner (cpu backend only)
    keep_packed  keep the weights on disk as the cpu backend lays them out, about the model's size again, in BISE_CACHE
                 or ~/.cache/bise: the next load maps that file (cpu backend only; `bise models remove` deletes it)
    isa          instruction set of the cpu backend: "avx512vnni", "avx2", "base"; "": the best that runs here
    progress     called with (bytes placed, bytes in all)
    adapter      a PEFT folder or a GGUF adapter, used wherever a request does not say otherwise; or several, by the
                 names that requests give
    any_base     also adapters that were trained on other weights of the same shapes
    """
    weights = Weights.open(find(path))
    config = windowed(weights.config, window)
    if context is not None and context < 1:
        raise RequestError(f"context is {context}, expected 1 or more tokens")
    if kv not in KV_TYPES:
        raise RequestError(f"kv is {kv!r}, expected one of {', '.join(KV_TYPES)}")
    context = context or config.context
    small = None if draft is None else Weights.open(find(draft))
    log.info("%s", plan(weights, config, context, kv, small))
    ops = load_ops(backend, threads, device, isa)
    guesser = None
    if small is not None:
        _check_exact(ops)
        guesser = Model(small, small.config, ops, min(context, small.config.context), kv, lookup=False)
    several = adapter if isinstance(adapter, Mapping) else {lora.named(adapter): adapter} if adapter else {}
    read = {name: lora.read(one, weights, any_base) for name, one in several.items()}
    model = Model(weights, config, ops, context, kv, lookup, progress, keep_packed, guesser)
    model.adapters = {name: model.beside.place(one, name) for name, one in read.items()}
    if adapter and not isinstance(adapter, Mapping):
        model.adapter = next(iter(model.adapters))
    return model


def plan(weights: Weights, config: Config, context: int, kv: str, draft: Weights | None = None) -> str:
    """One line: what is about to be loaded and how much memory it will take, for ever."""
    window = f"window {config.sliding_window:,}" if config.sliding_window else "no window"
    line = (
        f"{config.version}, {window} ({config.window_reason}); weights {gib(weights.nbytes)}, "
        f"cache {gib(cache_bytes(config, context, kv))} {kv} for {context:,} tokens"
    )
    if draft is None:
        return line
    held = cache_bytes(draft.config, min(context, draft.config.context), kv)
    return f"{line}; draft model: weights {gib(draft.nbytes)}, cache {gib(held)}"


def _check_exact(ops: Ops) -> None:
    if not ops.exact:
        raise RequestError(
            f"a draft model needs backend cpu, not {ops.name}: numbers there depend on how many tokens are read at "
            "once, so that guesses would change the text"
        )


def find(path: str | Path | None, progress: Callable[[int, int], None] | None = None) -> Path:
    """A local path as it is; None is the built-in model; otherwise a hub id, downloaded if it is not here yet
    (progress is called with the bytes here, and in all)."""
    if path is None:
        return BUILT_IN
    if Path(path).exists() or not _looks_like_id(str(path)):
        return Path(path)
    from .hub import pull

    return pull(str(path), progress)


def _looks_like_id(name: str) -> bool:
    """ORG/REPO, ORG/REPO:TYPE or ORG/REPO/FILE.gguf, unless ORG is a folder here: then it is a path that is wrong."""
    form = re.fullmatch(r"([\w-][\w.-]*)/[\w.-]+(:[\w.-]+|/[\w./-]+\.gguf)?", name)
    if form is None or Path(form[1]).exists():
        return False
    return form[2] is not None or not name.endswith((".gguf", ".safetensors"))


def windowed(config: Config, window: int | str | None) -> Config:
    """With the window that was asked for: a number of tokens, "none", or None for the model's own."""
    if window is None:
        return config
    if window == "none":
        return config.with_window(None)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise RequestError(f"window is {window!r}, expected a number of tokens or 'none'")
    return config.with_window(window)


def gib(n: int) -> str:
    """Bytes, for people."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**27 else f"{n / 2**20:.1f} MiB"
