"""bise eval: how good a model is, and how much of it a smaller file has kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from . import app
from .options import MODEL, Beside, Loading, grouped, option

if TYPE_CHECKING:
    from ..api import Model
    from ..evaluate import Kept
    from ..texts import Cut, Ids

CUT = "What is scored"
TEXT = (
    "Files of text; .jsonl or .json with a text a row, .gz of these; or a folder of WikiText-2 (its test split, "
    "otherwise the validation split)."
)
EXAMPLES = """[bold]Examples[/]

[cyan]bise eval perplexity mistral-7b-v0.1.Q4_K_M.gguf wiki.test.raw[/]  as llama.cpp counts it

[cyan]bise eval kl mistral-7b-v0.1.Q4_K_M.gguf --against mistral-7b-v0.1/ wiki.test.raw --chunks 50[/]

[cyan]bise eval perplexity mistral-7b-v0.1.Q4_K_M.gguf held-out.txt --adapter runs/chats[/]  what it has learnt

[cyan]bise eval importance mistral-7b-v0.1/ calibration.txt -o mistral.imatrix.gguf[/]
"""
COUNTS = """[bold]How it is counted[/]

As llama.cpp does, so that figures compare: the text is tokenised whole and cut into chunks; each is read from an empty
cache, BOS in the place of its first token, and the second half of it is scored, so that every token that counts has at
least half a chunk before it. What is left at the end and fills no chunk is not read. Figures of models with different
vocabularies do not compare. The error is the standard error of the mean over tokens.
"""
KL_EXAMPLES = """[bold]Examples[/]

[cyan]bise eval kl model.Q4_K_M.gguf --against model.f16.gguf wiki.test.raw --chunks 100[/]

[cyan]bise eval kl model.Q3_K_M.gguf --against model.f16.gguf wiki.test.raw --chunks 100[/]  at once: the full model's
logits are on disk by now, in ~/.cache/bise or BISE_CACHE; with --json one line

[bold]What the figures say[/]

KL is the divergence of the file's predictions from the full model's, in nats a token: 0 for the same model, 0.01 for a
good 4-bit file of a 7B model, above 0.1 texts change. "same top" is how often both find the same token likeliest.
Quality is judged by these rather than by perplexity, in which losses and lucky gains cancel. Figures of the same text
and cut compare; scoring is as in 'bise eval perplexity'.
"""

IMPORTANCE_EXAMPLES = """[bold]Examples[/]

[cyan]bise eval importance mistral-7b-v0.1.f16.gguf calibration.txt -o imatrix.gguf[/]

[cyan]bise eval importance model.f16.gguf chats.jsonl --add imatrix.gguf -o both.gguf[/]  both texts count

[cyan]bise eval importance model.f16.gguf --add theirs.dat -o theirs.gguf[/]  from the older format to the newer
"""

evals = typer.Typer(
    rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(evals, name="eval", help="Judge a model: perplexity, KL, the importance matrix.", epilog=EXAMPLES)


@evals.callback()
def judge() -> None:
    """Judge a model by a text: how well it predicts it (perplexity), how far it strays from the model that it was made
    of (kl), and which columns of its weights matter (importance)."""


# fmt: off
@dataclass
class Reading(Loading):
    """How the model is loaded and the text is cut: --context is a chunk's length here."""

    context: Annotated[int | None, option(CUT, "--context", "-c", metavar="N",
        help="Tokens of a chunk. Default: 512, or the model's context where that is less.")] = None
    chunks: Annotated[int | None, option(CUT, "--chunks", metavar="N",
        help="Read only the first N chunks. Default: the whole text.")] = None


@dataclass
class Scoring(Reading):
    """Which tokens of a chunk are scored."""

    stride: Annotated[int | None, option(CUT, "--stride", metavar="N",
        help="Begin a chunk every N tokens and score the last N of each: every token has long context, at the price of "
             "reading the text context / N times. Default: chunks do not overlap, the second half is scored.")] = None
    all_positions: Annotated[bool, option(CUT, "--all-positions",
        help="Score every token of a chunk but the first, also those with little before them.")] = False
# fmt: on


@evals.command(epilog=COUNTS)
@grouped
def perplexity(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help=MODEL.split(" Default")[0])],
    text: Annotated[list[Path], typer.Argument(metavar="TEXT", show_default=False, help=TEXT)],
    json: Annotated[bool, option(None, "--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    scoring: Scoring,
    beside: Beside,
) -> None:  # fmt: skip
    """How well a model predicts a text: among how many equally likely tokens it might as well have guessed."""
    from ..evaluate import perplexity as measure
    from .terminal import Bar, listen

    listen(quiet)
    loaded = _open(scoring, model, beside)
    cut = _cut(scoring, loaded.config.context)
    chunks = _chunks(loaded, text, cut)
    started = time.perf_counter()
    with Bar("perplexity", "tokens") as bar:
        found = measure(loaded, chunks, cut, bar)
    facts = _about(loaded, text, cut, chunks, started) | found.facts()
    if json:
        _print_json(facts)
        return
    _print_facts(facts, {"perplexity": str(found.perplexity), "loss": f"{found.loss} nats a token"})
    _print_bins(found.by_position(), {"perplexity": ">perplexity"})


@evals.command(epilog=KL_EXAMPLES)
@grouped
def kl(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="The file to be judged.")],
    text: Annotated[list[Path], typer.Argument(metavar="TEXT", show_default=False, help=TEXT)],
    against: Annotated[str, option(None, "--against", metavar="FULL",
        help="The full model: the one that the file was made of. Required.")],
    json: Annotated[bool, option(None, "--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    scoring: Scoring,
    beside: Beside,
) -> None:  # fmt: skip
    """How far a model strays from the full model that it was made of, over a text.

    The full model's logits are kept on disk, so that it is run once for all the files that are judged. An adapter lies
    beside the judged model only: against its own base, KL says how much it changes.
    """
    from ..evaluate import divergence
    from .terminal import Bar, listen

    listen(quiet)
    chunks, cut, full = _full(against, model, text, scoring, quiet)
    loaded = _open(scoring, model, beside)
    started = time.perf_counter()
    with Bar("KL", "tokens") as bar:
        found = divergence(loaded, full, chunks, cut, bar)
    facts = _about(loaded, text, cut, chunks, started) | {"against": against, "logits": str(full.path)} | found.facts()
    if json:
        _print_json(facts)
        return
    quantiles = ", ".join(f"{100 * share:g} % {value:.2g}" for share, value in found.quantiles.items())
    _print_facts(
        facts,
        {
            "against": against,
            "KL": f"{found.kl} nats a token",
            "quantiles": f"{quantiles}, largest {found.largest:.2g}",
            "same top": found.same_top.percent(),
            "probability": f"of the text's token changed by {found.change.percent()}, RMS {found.change_rms.percent()}",
            "perplexity": f"{found.other}, the full model's {found.full}, ratio {found.ratio}",
        },
    )
    _print_bins(found.by_position(), {"kl": ">KL", "same_top": ">same top", "ratio": ">perplexity ratio"})


@evals.command(epilog=IMPORTANCE_EXAMPLES)
@grouped
def importance(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="The full model.")],
    text: Annotated[list[Path] | None, typer.Argument(metavar="TEXT", show_default=False,
        help=TEXT + " What the model will be used for, and not the text by which it is judged.")] = None,
    output: Annotated[Path, option(None, "--output", "-o", metavar="FILE",
        help="Where to write it: .gguf, or .dat for the older format of llama.cpp. Required.")],
    add: Annotated[list[Path] | None, option(None, "--add", metavar="FILE",
        help="Add an importance matrix that was made before, of the same model. May be given several times.")] = None,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    reading: Reading,
) -> None:  # fmt: skip
    """Measure which columns of the weights matter: the mean squared input of each, while the model reads a text.

    'bise quantize' and llama.cpp's quantiser spend their care accordingly. Chunks of 512 tokens, a hundred of them or
    more; further chunks change little.
    """
    from ..importance import read, write
    from ..weights import Weights, expected_shapes
    from .terminal import listen, note

    listen(quiet)
    if output.suffix not in (".gguf", ".dat"):
        raise RequestError(f"--output is {str(output)!r}, expected a name that ends in .gguf or .dat")
    if not text and not add:
        raise RequestError("no text: name one or more files, or --add what was made before")
    before = [read(path) for path in add or []]
    if text:
        before.append(_collected(_open(reading, model), text, reading))
        shapes = None
    else:
        shapes = expected_shapes(Weights.open(_found(model)).config)
    total = before[0]
    for other in before[1:]:
        total = total + other
    if shapes:
        total.of(shapes)
    write(output, total)
    if not quiet:
        tokens = max(total.counts.values())
        note(f"{output}: {len(total)} weights, {tokens:,.0f} tokens in {total.chunks:,} chunks")


def _collected(loaded: Model, text: list[Path], reading: Reading) -> Any:
    from ..moments import collect
    from ..texts import Cut
    from .terminal import Bar

    cut = Cut(min(reading.context or 512, loaded.config.context), most=reading.chunks)
    chunks = _chunks(loaded, text, cut)
    with Bar("importance", "tokens") as bar:
        return collect(loaded, list(chunks), [path.name for path in text], bar)


def _found(model: str) -> Path:
    from ..api import find
    from .terminal import Bar

    with Bar("pulling", "bytes") as bar:
        return find(model, bar)


def _open(reading: Reading, model: str, beside: Beside | None = None) -> Model:
    """The model, whose context is nothing that this verb limits."""
    from ..api import load
    from .options import Ahead
    from .terminal import Bar

    found, beside = _found(model), beside or Beside()
    told = reading.told(Ahead()) | {"context": None, "adapter": beside.one(), "any_base": beside.any_base}
    with Bar("loading", "bytes") as bar:
        return load(found, progress=bar, **told)


def _cut(scoring: Scoring, context: int) -> Cut:
    from ..texts import Cut

    return Cut(scoring.context or min(512, context), scoring.stride, scoring.all_positions, scoring.chunks)


def _chunks(loaded: Model, text: list[Path], cut: Cut) -> Ids:
    from ..texts import cut as make
    from ..texts import read

    return make(loaded.tokenizer, read(text), cut)


def _full(against: str, model: str, text: list[Path], scoring: Scoring, quiet: bool) -> tuple[Ids, Cut, Kept]:
    """The chunks, how they were cut, and the full model's logits. Of the two models one is in memory at a time."""
    from ..api import windowed
    from ..evaluate import common_chunks, full_logits
    from ..texts import read
    from ..weights import Weights
    from .terminal import Bar, note

    full, other = Weights.open(_found(against)), Weights.open(_found(model))
    cut = _cut(scoring, full.config.context)
    chunks = common_chunks(full, other, read(text), cut)
    window = windowed(full.config, scoring.window_value()).sliding_window
    with Bar("full model", "tokens") as bar:

        def load(path: Path) -> Model:
            if not quiet:
                note(f"the full model first; its logits are kept in {path}")
            return _open(scoring, against)

        kept = full_logits(full, chunks, cut, {"window": window, "kv": scoring.kv, **_arithmetic(scoring)}, load, bar)
    return chunks, cut, kept


def _arithmetic(scoring: Scoring) -> dict[str, Any]:
    """What else may change a logit's last digits."""
    from .. import __version__
    from ..bench import machine

    isa = machine()["isa"] if scoring.backend == "cpu" else None
    return {"backend": scoring.backend, "device": scoring.device, "isa": isa, "bise": __version__}


def _about(loaded: Model, text: list[Path], cut: Cut, chunks: Ids, started: float) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    return {
        "model": str(loaded.path), "adapter": loaded.adapter, "bytes": loaded.weights.nbytes,
        "text": [str(path) for path in text],
        "context": cut.context, "stride": cut.stride, "all_positions": cut.all_positions, "chunks": len(chunks),
        "window": loaded.config.sliding_window, "kv": loaded.kv, "backend": loaded.ops.name,
        "seconds": round(seconds, 3), "tokens_per_second": round(chunks.size / seconds, 1),
    }  # fmt: skip


def _print_json(facts: dict[str, Any]) -> None:
    import json as writer

    print(writer.dumps(facts, ensure_ascii=False, allow_nan=False))


def _print_facts(facts: dict[str, Any], figures: dict[str, str]) -> None:
    from .terminal import print_facts, size

    cut = f"{facts['tokens']:,} tokens scored, in {facts['chunks']:,} chunks of {facts['context']:,}"
    if facts["stride"]:
        cut += f", one every {facts['stride']:,}"
    read = f"{facts['seconds']:,.1f} s, {facts['tokens_per_second']:,.0f} tokens/s"
    title = f"{facts['model']} ({size(facts['bytes'])})" + (f" with {facts['adapter']}" if facts["adapter"] else "")
    print_facts(title, {**figures, "text": f"{', '.join(facts['text'])}: {cut}", "read in": read})


def _print_bins(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    from .terminal import print_table

    lines = [
        [f"{row['first']:,}–{row['last']:,}", *(row[c].percent() if c == "same_top" else str(row[c]) for c in columns)]
        for row in rows
    ]
    print_table([">in the chunk", *columns.values()], lines, "By position")
