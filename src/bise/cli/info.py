"""bise info: everything there is to know about a model before it is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BiseError
from . import app
from .options import MODEL, option

if TYPE_CHECKING:
    from ..weights import Weights

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)  # tokens; of those the model was made for, the last four
EXAMPLES = """[bold]Examples[/]

[cyan]bise info[/]  the built-in model

[cyan]bise info mistral-7b-v0.1.Q4_K_M.gguf[/]

[cyan]bise info mistral-7b-v0.1.Q4_K_M.gguf --json | jq .memory[/]
"""


@app.command(epilog=EXAMPLES)
def info(
    *,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)] = None,
    json: Annotated[bool, option(None, "--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Show what a model is and what it will need.

    Reads the headers of its files only: quick, however large they are.
    """
    from ..api import find
    from ..weights import Weights
    from .terminal import Bar, listen

    listen(quiet=False)
    with Bar("pulling", "bytes") as bar:
        path = find(model, bar)
    facts = about(Weights.open(path))
    if json:
        import json as writer

        print(writer.dumps(facts, ensure_ascii=False))
    else:
        _print(facts)


def about(weights: Weights) -> dict[str, Any]:
    """The facts, as JSON has them. Sizes in bytes, contexts in tokens."""
    config = asdict(weights.config)
    reason = config.pop("window_reason")
    return {
        "path": str(weights.path),
        "name": weights.metadata.get("general.name") or weights.metadata.get("_name_or_path") or "",
        "layout": weights.layout,
        "version": weights.config.version,
        "parameters": sum(math.prod(entry.shape) for entry in weights.entries.values()),
        "bytes": weights.nbytes,
        "tied": weights.tied,
        "config": config,
        "window": {"tokens": config["sliding_window"], "reason": reason},
        "types": {kind: {"tensors": n, "bytes": size} for kind, (n, size) in weights.types().items()},
        **_speech(weights),
        "memory": _memory(weights),
        "machine": _machine(),
        "fingerprint": weights.fingerprint,
    }


def _speech(weights: Weights) -> dict[str, Any]:
    """The tokenizer and the chat format, or why there is none."""
    from ..chat import ChatFormat
    from ..tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.of(weights)
        if tokenizer is None:
            return {"tokenizer": None, "chat": None}
        form = ChatFormat.of(weights, tokenizer)
    except BiseError as error:
        return {"tokenizer": {"error": str(error)}, "chat": None}
    about = {"tokens": tokenizer.vocab_size, "bos": tokenizer.bos, "eos": tokenizer.eos, "control": tokenizer.control}
    return {"tokenizer": about, "chat": form.name if form else None}


def _memory(weights: Weights) -> list[dict[str, int | None]]:
    """Bytes of keys and values for one conversation, with the window and without."""
    from ..cache import cache_bytes

    config = weights.config
    full = config.with_window(None)
    q8_0 = config.head_dim % 32 == 0  # its blocks are of 32
    contexts = sorted({*[c for c in CONTEXTS if c <= config.context][-4:], config.context})
    return [
        {
            "context": context,
            "window_f16": cache_bytes(config, context, "f16"),
            "window_q8_0": cache_bytes(config, context, "q8_0") if q8_0 else None,
            "full_f16": cache_bytes(full, context, "f16"),
            "full_q8_0": cache_bytes(full, context, "q8_0") if q8_0 else None,
        }
        for context in contexts
    ]


def _machine() -> dict[str, Any]:
    from ..bench import machine

    return machine()


def _print(facts: dict[str, Any]) -> None:
    from .terminal import print_facts, print_table, size

    c, window = facts["config"], facts["window"]
    tokenizer, chat = facts["tokenizer"], facts["chat"]
    print_facts(
        facts["name"] or facts["path"],
        {
            "file": f"{facts['path']} ({facts['layout']})",
            "version": facts["version"],
            "parameters": f"{_millions(facts['parameters'])}, {size(facts['bytes'])} in all"
            + (", embedding and output are one" if facts["tied"] else ""),
            "window": (f"{window['tokens']:,} tokens" if window["tokens"] else "none") + f": {window['reason']}",
            "context": f"{c['context']:,} tokens, RoPE theta {c['rope_theta']:g}"
            + (f", stretched {c['rope_factor']:g} times" if c["rope_factor"] != 1 else ""),
            "shape": f"{c['n_layers']} layers of width {c['dim']:,}, feed-forward {c['hidden_dim']:,}",
            "attention": f"{c['n_heads']} query heads share {c['n_kv_heads']} key/value heads of size {c['head_dim']}",
            "tokenizer": _tokenizer_line(tokenizer),
            "chat format": chat or "none: a base model, made to continue text (bise chat will speak v1 to it)",
            "arithmetic": facts["machine"]["isa"] or "no C++ kernels here: --backend reference or torch",
            "fingerprint": facts["fingerprint"][:16],
        },
    )
    rows = [[kind, f"{t['tensors']:,}", size(t["bytes"])] for kind, t in facts["types"].items()]
    print_table(["type", ">tensors", ">size"], rows, "Weights by type")
    _print_memory(facts["memory"], bool(window["tokens"]))


def _print_memory(memory: list[dict[str, int | None]], window: bool) -> None:
    from .terminal import print_table, size

    heads = {"full_f16": ">f16", "full_q8_0": ">q8_0"}
    if window:
        heads = {"window_f16": ">f16", "window_q8_0": ">q8_0", "full_f16": ">f16, full", "full_q8_0": ">q8_0, full"}
    rows = [[f"{row['context']:,}", *(size(row[column] or 0) for column in heads)] for row in memory]
    print_table([">context", *heads.values()], rows, "Memory for keys and values, on top of the weights")


def _tokenizer_line(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none: only token ids can be used"
    if "error" in tokenizer:
        return str(tokenizer["error"])
    control = list(tokenizer["control"])
    more = f" and {len(control) - 10} more" if len(control) > 10 else ""
    return f"SentencePiece, {tokenizer['tokens']:,} tokens; control tokens {' '.join(control[:10])}{more}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 10**9 else f"{count / 1e6:.1f} million"
