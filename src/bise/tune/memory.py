"""What a run will hold in memory, predicted part by part before anything is loaded; and the micro-batch that fits.

The most is held in one of two places: where the logits are, at the end of the way forward, or in the last layer on the
way back (with checkpointing: in any layer, which is then computed once more). Sizes follow from what the functions of
ops/torch keep for their way back; the tests hold them against what torch's allocator counts and what the system says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import machine
from ..config import Config
from ..errors import RequestError
from ..machine import peak, resident
from ..ops.torch import entropy
from ..ops.torch import weights as matrices
from ..ops.torch.product import STRIP
from ..quant import nbytes
from ..weights import Weights, expected_shapes
from .keepers import held
from .sample import Example, Pair, Sample, Verdict
from .student import Student

Objective = Callable[[Student, Sequence[Any]], tuple[Tensor, int, dict[str, float]]]
FLOAT = 4  # bytes
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# What comes with the first step besides tensors, measured (torch 2.13, Linux x86-64, one thread):
START = 32 << 20  # code of torch and MKL, buffers of their threads
STEPS = 64  # tokens: micro-batches are planned in multiples of it
MOST = 8192  # tokens of a micro-batch: more of them are no faster


@dataclass(frozen=True)
class Subject:
    """A model and the way it is to be taught: all that memory depends on, but for the rows.

    types    canonical name -> type of its file
    base     "as it is" | "nf4" | "q8_0";  method "lora" | "dora" | "full";  bits: of the optimiser's averages
    ranks    processes that share what is trained
    """

    config: Config
    types: Mapping[str, str]
    method: str = "lora"
    rank: int = 16
    targets: Sequence[str] = ()
    base: str = "as it is"
    bits: int = 32
    ranks: int = 1

    @classmethod
    def of(
        cls, weights: Weights, method: str, rank: int, targets: Sequence[str], base: str = "as it is", bits: int = 32,
        ranks: int = 1,
    ) -> Subject:  # fmt: skip
        """Reads nothing but headers."""
        types = {name: entry.type for name, entry in weights.entries.items()}
        return cls(weights.config, types, method, rank, tuple(targets), base, bits, ranks)

    @property
    def trained(self) -> dict[str, int]:
        """Numbers that are trained, by the weight that they change."""
        shapes = {name: shape for name, shape in expected_shapes(self.config).items() if name in self.types}
        if self.method == "full":
            return {name: _count(shape) for name, shape in shapes.items()}
        return {
            name: self.rank * sum(shape) + (shape[0] if self.method == "dora" else 0)
            for name, shape in shapes.items() if name.rpartition(".")[2] in self.targets
        }  # fmt: skip

    @property
    def kept(self) -> int:
        """Of those, the most that a rank keeps."""
        return max(held(self.trained, self.ranks))

    def visiting(self, checkpointing: bool) -> int:
        """Of those, the most that a rank has of others' at a time."""
        if not checkpointing:
            return sum(self.trained.values()) - self.kept
        layer = sum(count for name, count in self.trained.items() if name.startswith("blk.0."))
        return max(layer, *self.trained.values())


@dataclass(frozen=True)
class Load:
    """A micro-batch: rows that are read, rows that are learnt from, and whether it holds more than one sequence."""

    tokens: int
    learnt: int
    many: bool = False

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Load:
        samples = [sample for example in examples for sample in samples_of(example)]
        tokens = sum(len(sample) - 1 for sample in samples if sample.targets)
        return cls(tokens, sum(sample.targets for sample in samples), len(samples) > 1)


def samples_of(example: Example) -> list[Sample]:
    if isinstance(example, Pair):
        return [example.chosen, example.rejected]
    return [example.answer] if isinstance(example, Verdict) else [example]


def predict(subject: Subject, load: Load, checkpointing: bool, process: int | None = None) -> dict[str, int]:
    """Bytes of every part at the moment when the most is held. process: what is held before the model is loaded."""
    c, trained = subject.config, subject.kept
    kept, work = _on_the_way(subject, load, checkpointing)
    averages = 2 * FLOAT * trained if subject.bits == 32 else 2 * trained * (1 + FLOAT / matrices.GROUP)
    return {
        "process": (resident() if process is None else process) + START,
        "frozen weights": 0 if subject.method == "full" else sum(_held(subject, name) for name in subject.types),
        "decoded weights": _decoded(subject, load),
        "trained": FLOAT * trained,
        "gradients": FLOAT * trained,
        "optimiser": int(averages),
        **({"other processes' weights": FLOAT * subject.visiting(checkpointing)} if subject.ranks > 1 else {}),
        "kept for the way back": kept,
        "work": work + FLOAT * load.tokens * c.head_dim,  # and the tables of RoPE
    }


def _held(subject: Subject, name: str) -> int:
    """A frozen tensor: rounded where that was asked for, else as its file has it."""
    shape, type = expected_shapes(subject.config)[name], _type(subject, name)
    if type == "NF4":
        scales = _count(shape) // matrices.BLOCK
        return _count(shape) // 2 + scales + FLOAT * (scales // matrices.GROUP)
    return nbytes("F32" if len(shape) == 1 else type, shape)


def _rounded(subject: Subject, name: str) -> bool:
    """Whether --base changes it: a matrix of floats, but not the embedding, which stays in its file."""
    matrix = len(expected_shapes(subject.config)[name]) == 2 and name != "token_embd"
    return matrix and subject.types[name] in ("F32", "F16", "BF16")


def _decoded(subject: Subject, load: Load) -> int:
    """Where weights are for a moment: the strip that those of 16 bits and NF4 are decoded into; of those in blocks the
    panels of every thread, turned, and the gradients that meet them, in 8 bits."""
    c = subject.config
    if subject.method == "full":
        return 0
    used = [name for name, shape in expected_shapes(c).items() if len(shape) == 2 and name != "token_embd"]
    types = {_type(subject, name) for name in used if name in subject.types}
    strip = blocks = 0
    if types & {"F16", "BF16", "NF4"}:
        strip = FLOAT * min(STRIP, max(_count(shape) for shape in expected_shapes(c).values()))
    if types - {"F32", "F16", "BF16", "NF4"}:
        deepest = max(2 * c.hidden_dim, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.vocab_size)  # rows summed over
        rows = max(load.tokens * 2 * c.hidden_dim, min(load.learnt * c.vocab_size, entropy.LOGITS))
        blocks = int(1.25 * (torch.get_num_threads() * 256 * deepest * 17 / 16 + 1.5 * rows))
    return strip + blocks


def _type(subject: Subject, name: str) -> str:
    """What a matrix is kept as."""
    return subject.base.upper() if subject.base != "as it is" and _rounded(subject, name) else subject.types[name]


def _on_the_way(subject: Subject, load: Load, checkpointing: bool) -> tuple[int, int]:
    """(what is kept for the way back, what else there is at the moment when the most is held)."""
    c = subject.config
    every, last = (_Layer(subject, load, rows, checkpointing) for rows in (load.tokens, load.learnt))
    logits = _logits(subject, load)
    if not checkpointing:
        kept = (c.n_layers - 1) * every.kept + last.kept
        return kept, max(logits, last.back)
    inputs = c.n_layers * FLOAT * load.tokens * c.dim  # of which the layer that is made again keeps none
    again = max(layer.kept + layer.back for layer in ([every, last] if c.n_layers > 1 else [last]))
    return inputs, max(logits, again - FLOAT * load.tokens * c.dim)


class _Layer:
    """Bytes that one layer keeps of a micro-batch, and what its way back takes besides. Its feed-forward part sees
    `learnt` rows."""

    def __init__(self, subject: Subject, load: Load, learnt: int, again: bool) -> None:
        c = subject.config
        queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        inner = [0 if subject.method == "full" or part not in subject.targets else subject.rank for part in LINEAR]
        attention = (
            c.dim  # what came in: its norm is made again
            + queries + 2 * keys  # turned queries and keys, values
            + queries * (2 if load.many else 1)  # what attention gives; several sequences are put together in a copy
            + c.n_heads  # log of the sum of each query's weights
            + sum(inner[:4])  # A x of the adapters
        )  # fmt: skip
        feed_forward = c.dim + 2 * c.hidden_dim + sum(inner[4:])  # the stream between, gate and up: the rest again
        gate = 3 * c.hidden_dim + c.dim  # gradients of the gated, of gate and of up; that of the stream
        attend = 2 * (queries + keys + c.dim)  # gradients of what attention gave, of q, k and v; of the stream, twice
        # and the weight's own gradient, to be added; where the layer is made again that of ffn_down waits for its end
        product = learnt * 2 * (c.hidden_dim + c.dim) + c.dim * c.hidden_dim * (2 if again else 1)
        self.kept = FLOAT * (load.tokens * attention + learnt * feed_forward)
        after = FLOAT * (load.tokens * attend - learnt * feed_forward + _tile(load.tokens))  # that part's is gone then
        self.back = max(FLOAT * learnt * gate, after)
        if subject.method == "full":
            self.back = max(self.back, FLOAT * product)


def _tile(rows: int) -> int:
    """Scores and their gradients that torch's attention holds at once on the CPU, one tile for each thread."""
    queries = 256 if rows >= 768 else 64 if rows >= 192 else 32
    return torch.get_num_threads() * 2 * min(rows, queries) * min(rows, 512)


def _logits(subject: Subject, load: Load) -> int:
    """Logits of as many rows as are computed at once, beside the last states, their norm and its gradient. Where the
    output matrix learns: four times over, or twice beside the matrix' gradient."""
    c = subject.config
    rows = min(load.learnt, max(1, entropy.LOGITS // c.vocab_size))
    one, states = rows * c.vocab_size, 3 * load.learnt * c.dim
    if _learns_output(subject):
        one = max(4 * one, 2 * one + (c.vocab_size * c.dim if subject.method == "full" else 0))
        states = 2 * load.learnt * c.dim
    return FLOAT * (one + rows * c.dim + states)


def _learns_output(subject: Subject) -> bool:
    return subject.method == "full" or "output" in subject.targets


def _count(shape: Sequence[int]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


@dataclass(frozen=True)
class Plan:
    """parts: bytes by name; micro: tokens of a micro-batch; limit: bytes that may be used, None: not said."""

    parts: Mapping[str, int]
    micro: int
    checkpointing: bool
    limit: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def facts(self) -> dict[str, Any]:
        """For the run's card."""
        return {"parts": dict(self.parts), "bytes": self.total, "limit": self.limit, "micro": self.micro,
                "checkpointing": self.checkpointing}  # fmt: skip

    def rows(self) -> list[tuple[str, int, float]]:
        """(part, bytes, share of all), the largest first."""
        return [(name, size, size / self.total) for name, size in sorted(self.parts.items(), key=lambda p: -p[1])]


def plan(
    subject: Subject, examples: Sequence[Example], step: int, limit: int | None = None, process: int | None = None,
    micro: int | None = None, checkpointing: bool | None = None,
) -> Plan:  # fmt: skip
    """The largest micro-batch within `limit` bytes, without checkpointing if the longest row fits so; what is given
    (micro, checkpointing) is kept. step: tokens of a step. RequestError with the numbers where nothing fits."""
    longest = max(sum(len(sample) for sample in samples_of(example)) for example in examples)
    share = max(_learnt_share(example) for example in examples)
    least = -(-longest // STEPS) * STEPS
    top = max(least, min(MOST, step))
    smaller = range(top, least, -max(STEPS, (top - least) // 32))
    sizes = [*smaller, least] if micro is None else [micro]
    process = resident() if process is None else process
    for run_again in (False, True) if checkpointing is None else (checkpointing,):
        for tokens in sizes:
            rows = max(tokens, longest)
            load = Load(rows, int(share * rows), many=tokens > longest or isinstance(examples[0], Pair))
            found = Plan(predict(subject, load, run_again, process), tokens, run_again, limit)
            if limit is None or found.total <= limit:
                return found
    raise RequestError(_refusal(subject, found, longest))


def _learnt_share(example: Example) -> float:
    load = Load.of([example])
    return load.learnt / max(1, load.tokens)


def _refusal(subject: Subject, found: Plan, longest: int) -> str:
    """What was needed, for what, and what would help most: never a guess, each remedy is computed."""
    parts, limit = found.parts, found.limit or 0
    on_the_way = parts["kept for the way back"] + parts["work"]
    fixed = found.total - on_the_way
    named = ", ".join(f"{name} {_gib(size)}" for name, size, share in found.rows() if share >= 0.05)
    remedies = [] if fixed >= limit else [
        f"rows of at most {int(longest * (limit - fixed) / on_the_way) // STEPS * STEPS:,} tokens (--max-length)"
    ]  # fmt: skip
    if parts["process"] < limit:  # else nothing about the model is of any help
        if subject.method == "full":
            remedies.append("--method lora")
        elif subject.base == "as it is" and any(_rounded(subject, name) for name in subject.types):
            remedies.append("--base nf4, or a quantised file")
        if subject.bits == 32 and parts["optimiser"] > 0.05 * found.total:
            remedies.append(f"--optimiser-bits 8 (saves {_gib(parts['optimiser'] * 3 // 4)})")
    return (
        f"the smallest step needs {_gib(found.total)} and {_gib(limit)} may be used ({named}): "
        f"{'; '.join([*remedies, f'--memory {_gib(found.total)}'])}"
    )


def _gib(size: float) -> str:
    """A little more rather than less: it is also what to ask for."""
    return f"{math.ceil(size / 2**30 * 10) / 10:.1f}g" if size >= 2**30 else f"{math.ceil(size / 2**20)}m"


def read_size(text: str) -> int:
    """ "16g", "900m", "1.5G" -> bytes (GiB, MiB). RequestError otherwise."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*([gm])(?:i?b)?", text.strip().lower())
    if not match or not float(match[1]):
        raise RequestError(f"memory is {text!r}, expected for example 16g or 900m")
    return int(float(match[1]) * (1 << 30 if match[2] == "g" else 1 << 20))


def free(processes: int = 1, share: float = 0.9) -> int:
    """The most that each of so many processes may hold: this share of what the system could still give, divided, and
    what it has."""
    return int(share * machine.free() / processes) + resident()


def probe(student: Student, objective: Objective, examples: Sequence[Example]) -> int:
    """The most that one micro-batch takes, tried before the first step: the whole process, in bytes, yet without the
    optimiser's averages. The gradients are the caller's to zero; no chance is drawn."""
    forget_peak()
    noise, student.noise = student.noise, 0.0
    try:
        objective(student, examples)[0].backward()  # type: ignore[no-untyped-call]
    finally:
        student.noise = noise
    return peak()


def forget_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # then the peak is that since the process began, which is no less
