"""The options that several verbs share, each written once: how to load a model, and how to choose words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from ..api import Model

LOADING, ANSWER, CHOICE = "How the model is loaded", "The answer", "How each token is chosen"
AHEAD = "Reading ahead: the same text, sooner"
REPETITION, SURPRISE = "Against repetition", "More or less surprise"
FORMAT = "How messages are written: Mistral's v1, v2 or v3. Default: as the model's files say; base models: v1."
MODEL = "A .gguf file, a safetensors folder, or a hub id such as ORG/REPO:Q4_K_M. Default: the built-in model."
ADAPTER = r"[\w][\w.-]{0,63}"  # its name
BREAKERS = ("\n", ":", '"', "*")  # where DRY takes a text to begin anew


def option(panel: str | None, *names: str, help: str, metavar: str = "") -> Any:
    """An option whose help names its default in words; a flag has no metavar."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


# fmt: off
@dataclass
class Loading:
    """Everything that `bise.load` may be told."""

    window: Annotated[str | None, option(LOADING, "--window", metavar="N|none",
        help="Sliding window: how many tokens back each token looks; 'none' looks at everything. "
             "Default: as the model was trained.")] = None
    context: Annotated[int | None, option(LOADING, "--context", metavar="N",
        help="The most tokens that prompt and answer may have together. Default: as the model was trained.")] = None
    kv: Annotated[str, option(LOADING, "--kv", metavar="f16|q8_0|f32",
        help="How the keys and values of past tokens are kept: in 16 bits, 8 bits (half the memory) or 32 bits. "
             "Default: f16.")] = "f16"
    threads: Annotated[int | None, option(LOADING, "--threads", "-t", metavar="N",
        help="Processor threads. Default: one per core.")] = None
    backend: Annotated[str, option(LOADING, "--backend", metavar="cpu|torch|reference",
        help="What does the arithmetic: the C++ kernels, PyTorch, or plain NumPy (slow, the specification). "
             "Default: cpu.")] = "cpu"
    device: Annotated[str | None, option(LOADING, "--device", metavar="NAME",
        help="Where the torch backend computes: cpu, cuda, cuda:1, mps.")] = None
    keep_packed: Annotated[bool, option(LOADING, "--keep-packed",
        help="Keep the weights on disk as the kernels want them, so that the next start is several times as quick. "
             "Takes the model's size once more, in ~/.cache/bise or BISE_CACHE; checked each time, made anew when the "
             "model changes, deleted by 'bise models remove MODEL'.")] = False

    # fmt: on

    def open(self, path: Path | str | None, ahead: Ahead | None = None, isa: str = "",
             beside: Beside | None = None) -> Model:  # fmt: skip
        """The model, with a bar on the terminal while its weights are placed. isa: as `bise.load` has it."""
        from ..api import find, load
        from .terminal import Bar

        with Bar("pulling", "bytes") as bar:
            found = find(path, bar)
        told, beside = self.told(ahead or Ahead()), beside or Beside()
        with Bar("loading", "bytes") as bar:
            return load(found, isa=isa, progress=bar, adapter=beside.one(), any_base=beside.any_base, **told)

    def told(self, ahead: Ahead) -> dict[str, Any]:
        """What `bise.load` is told beside the path, in values that JSON knows; a draft model is pulled if need be."""
        from ..api import find
        from .terminal import Bar

        with Bar("pulling", "bytes") as bar:
            draft = None if ahead.draft is None else str(find(ahead.draft, bar))
        return {
            "window": self.window_value(), "context": self.context, "kv": self.kv, "threads": self.threads,
            "backend": self.backend, "device": self.device, "lookup": not ahead.no_lookup, "draft": draft,
            "keep_packed": self.keep_packed,
        }  # fmt: skip

    def window_value(self) -> int | str | None:
        """The text of --window as `bise.load` wants it."""
        if self.window is None or self.window == "none":
            return self.window
        if not re.fullmatch(r"[0-9]{1,9}", self.window):
            raise RequestError(f"--window is {self.window!r}, expected a number of tokens or none")
        return int(self.window)


# fmt: off
@dataclass
class Beside:
    """Adapters beside the model."""

    adapter: Annotated[list[str] | None, option(LOADING, "--adapter", metavar="[NAME=]PATH",
        help="An adapter (LoRA) that was trained on this model: a PEFT folder or a GGUF. A server takes several, each "
             "by the name that requests give.")] = None
    any_base: Annotated[bool, option(LOADING, "--any-base",
        help="Take adapters that were trained on other weights of the same shapes, such as the same model before it "
             "was quantised.")] = False

    # fmt: on

    def one(self) -> str | None:
        """Where there can be only one."""
        if self.adapter and len(self.adapter) > 1:
            raise RequestError(f"--adapter is given {len(self.adapter)} times: one at a time (bise serve takes more)")
        return next(iter(self.named().values()), None)

    def named(self) -> dict[str, str]:
        """By name: the file's own where none is given."""
        from ..lora import named

        found: dict[str, str] = {}
        for text in self.adapter or []:
            name, _, path = text.rpartition("=")
            name = name or named(path)
            if not re.fullmatch(ADAPTER, name) or name in found:
                what = "there twice" if name in found else "expected letters, digits and . _ - only, at most 64"
                raise RequestError(f"--adapter {text!r:.80}: the name {name!r:.60} is {what}")
            found[name] = path
        return found


# fmt: off
@dataclass
class Ahead:
    """Where guesses about the next tokens come from."""

    draft: Annotated[str | None, option(AHEAD, "--draft", metavar="MODEL",
        help="A smaller model with the same vocabulary guesses up to 4 tokens ahead; the model tests them in one step "
             "and keeps those that it would have said. The text stays the same. It is asked "
             "where that pays, by its measured speed and how often it was right. cpu backend only. "
             "Default: none.")] = None
    no_lookup: Annotated[bool, option(AHEAD, "--no-lookup",
        help="Do not guess that a text which repeats itself goes on as it did before.")] = False

    # fmt: on


# fmt: off
@dataclass
class Choosing:
    """The settings of `bise.Sampling` and what ends an answer. Values are checked there, not here."""

    stop: Annotated[list[str], option(ANSWER, "--stop", metavar="TEXT",
        help="End where this text would appear. May be given several times.")] = field(default_factory=list)
    ignore_eos: Annotated[bool, option(ANSWER, "--ignore-eos",
        help="Go on where the model would end.")] = False
    seed: Annotated[int | None, option(CHOICE, "--seed", metavar="N",
        help="Where the random numbers start: same seed, same text. Default: a new one each time.")] = None
    top_k: Annotated[int, option(CHOICE, "--top-k", metavar="N",
        help="Choose among the N likeliest tokens only. Default: all.")] = 0
    top_p: Annotated[float, option(CHOICE, "--top-p", metavar="P",
        help="Choose among the fewest tokens whose probabilities add up to P. Default: all.")] = 1.0
    min_p: Annotated[float, option(CHOICE, "--min-p", metavar="P",
        help="Leave out tokens less than P times as likely as the likeliest. Default: none.")] = 0.0
    typical_p: Annotated[float, option(CHOICE, "--typical-p", metavar="P",
        help="Keep the tokens whose surprise is nearest to the average, up to a probability of P. Default: all.",
        )] = 1.0
    logit_bias: Annotated[list[str], option(CHOICE, "--logit-bias", metavar="ID=VALUE",
        help="Add VALUE to the score of token ID; -inf forbids it. May be given several times.")] = field(
        default_factory=list)
    repetition_penalty: Annotated[float, option(REPETITION, "--repetition-penalty", metavar="X",
        help="Make lately used tokens less likely: 1.1 is mild. Default: 1, off.")] = 1.0
    presence_penalty: Annotated[float, option(REPETITION, "--presence-penalty", metavar="X",
        help="Take X off the score of every lately used token. Default: 0.")] = 0.0
    frequency_penalty: Annotated[float, option(REPETITION, "--frequency-penalty", metavar="X",
        help="Take X off the score for each time a token was lately used. Default: 0.")] = 0.0
    penalty_window: Annotated[int, option(REPETITION, "--penalty-window", metavar="N",
        help="How many tokens back 'lately' reaches; -1: to the start. Default: 64.")] = 64
    dry_multiplier: Annotated[float, option(REPETITION, "--dry-multiplier", metavar="X",
        help="DRY ('don't repeat yourself'): how strongly to avoid phrases said before. Usual: 0.8. Default: 0, off.",
        )] = 0.0
    dry_base: Annotated[float, option(REPETITION, "--dry-base", metavar="X",
        help="DRY: each further repeated token multiplies the penalty by X. Default: 1.75.")] = 1.75
    dry_allowed_length: Annotated[int, option(REPETITION, "--dry-allowed-length", metavar="N",
        help="DRY: shorter phrases than N tokens may be repeated. Default: 2.")] = 2
    xtc_probability: Annotated[float, option(SURPRISE, "--xtc-probability", metavar="P",
        help="XTC ('exclude top choices'): how often the obvious tokens are passed over. Default: 0, never.")] = 0.0
    xtc_threshold: Annotated[float, option(SURPRISE, "--xtc-threshold", metavar="P",
        help="XTC: of the tokens at least this likely, only the least likely stays. Default: 0.1.")] = 0.1
    mirostat_tau: Annotated[float, option(SURPRISE, "--mirostat-tau", metavar="BITS",
        help="Mirostat 2: hold the surprise near BITS per token, in place of the cuts above. Usual: 5. Default: off.",
        )] = 0.0
    mirostat_eta: Annotated[float, option(SURPRISE, "--mirostat-eta", metavar="X",
        help="Mirostat 2: how quickly it corrects itself. Default: 0.1.")] = 0.1
    # fmt: on

    def options(self, model: Model, temperature: float) -> dict[str, Any]:
        """What `Session.stream` takes. Without --seed one is drawn here, so that it can be told."""
        import secrets

        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["temperature"] = temperature
        given["seed"] = secrets.randbits(32) if self.seed is None else self.seed
        given["logit_bias"] = dict(map(_bias, self.logit_bias))
        if self.dry_multiplier:
            from ..sampler import breakers

            pieces = [model.tokenizer.piece(i) for i in range(model.tokenizer.vocab_size)]
            given["dry_breakers"] = breakers(pieces, BREAKERS)
        return given


def settle_format(model: Model, name: str | None) -> None:
    """Speak the format that was asked for, or the model's own; to a base model, which has none, Mistral's first."""
    from .terminal import note

    if name is not None:
        model.chat_format = name
        return
    try:
        model.chat_format  # noqa: B018  # raises where there is none
    except UnsupportedError:
        model.chat_format = "v1"
        note("a base model, not made for conversation: speaking to it in Mistral's v1 format (see --format)")


def _bias(text: str) -> tuple[int, float]:
    """ID=VALUE -> (id, value)."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*=\s*(\S+)\s*", text)
    try:
        return int(match[1]), float(match[2])  # type: ignore[index]
    except (TypeError, ValueError):
        raise RequestError(f"--logit-bias is {text!r}, expected ID=VALUE, for example 13=-2.5 or 13=-inf") from None


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb ask for a group: a parameter that is a dataclass becomes one option per field of it."""
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint) and isinstance(hint, type):
            groups[parameter.name] = hint
            parameters += _parameters(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        verb(**values)

    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name],
                          default=[] if callable(f.default_factory) else f.default)
        for f in fields(group)
    ]  # fmt: skip
