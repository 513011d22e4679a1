"""A job: this model, these data, in this way. What `bise tune` does, and what a program calls.

from bise.tune.job import Job, start
start(Job("model.gguf", ("chats.jsonl",)), "runs/first")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from .. import machine
from ..chat import ChatFormat
from ..config import Config
from ..errors import RequestError, UnsupportedError
from ..tokenizer import Tokenizer
from ..weights import Weights
from . import card, data, memory, picture, samples
from .alarm import BrokenError
from .board import Board
from .budget import Clock
from .distributed import Ranks, joined
from .export import export
from .loop import News, Objective, Training, sft
from .pack import Batch
from .prefer import BETA, Dpo, Kto, Orpo, Remembered, switched_off
from .run import Run
from .settings import Settings
from .standing import Standing
from .student import TARGETS, Student

KIND = "bise-run-1"  # of the card; the number counts changes of its layout
ROWS = {"sft": "sft", "dpo": "pairs", "orpo": "pairs", "kto": "verdicts"}  # objective -> kind of rows
SMALL = 100_000_000  # parameters
LOOKED_AT = 256  # held-out rows that an evaluation reads
PROBED = 64  # of the longest rows, those that are tried before the first step
LONGEST = 2048  # tokens of a row, unless told otherwise


@dataclass(frozen=True)
class Job:
    """What is asked for. Values: as `Student.open`, `data.read` and `Settings` have them.

    data       files, each perhaps with a weight ("rows.jsonl:2")
    scratch    begin with random weights in the model's shape and with its vocabulary
    held_out   the share of rows to hold out, or files
    beta       of DPO and KTO, or the weight of ORPO's second part; None: the papers' 0.1
    chat       "v1" | "v2" | "v3": how messages are written, in place of what the model's files say
    memory     bytes that the process may hold; None: on a CPU, most of what the system has left
    settings   what was chosen of `Settings`; the rest follows from the model and the data
    """

    model: str
    data: tuple[str, ...]
    objective: str = "sft"
    method: str = "lora"
    scratch: bool = False
    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    targets: tuple[str, ...] = TARGETS
    base: str = "as it is"
    window: int | str | None = None
    held_out: float | tuple[str, ...] = 0.05
    max_length: int | None = None
    long: str = "refuse"
    last: bool = False
    append_eos: bool = True
    skip_bad: bool = False
    chat: str | None = None
    beta: float | None = None
    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objective not in ROWS:
            raise RequestError(f"objective is {self.objective!r}, expected {', '.join(ROWS)}")
        if self.scratch and (self.method != "full" or self.objective != "sft"):
            raise RequestError("from scratch every weight is trained, on texts: --method full and --objective sft")
        if self.objective == "kto" and self.method == "full":
            raise RequestError("kto compares with the model as it was, which full tuning overwrites: --method lora")

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Job:
        """What `facts` wrote."""
        lists = {name: tuple(value) if isinstance(value := facts[name], list) else value
                 for name in ("data", "targets", "held_out")}  # fmt: skip
        return cls(**{**facts, **lists})

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "settings": dict(self.settings)}

    def settled(self, config: Config, rows: int) -> Settings:
        """The settings, with what nobody chose; but for what the memory decides."""
        small, full, preference = config.parameters < SMALL, self.method == "full", self.objective != "sft"
        rate = (5e-7 if full else 5e-6) if preference else 2e-5 if full else 2e-4  # Zephyr's (Tunstall et al. 2023)
        usual: dict[str, Any] = {
            "rate": rate * (10 if small else 1), "bits": 8 if full and not small else 32, "warmup": 0.1
        }  # fmt: skip
        if self.scratch:
            usual |= {"rate": 3e-3, "matrix_rate": 0.02, "decay": 0.1, "schedule": "linear", "fall": 0.5,
                      "warmup": 60, "batch": "4096t"}  # fmt: skip
        if not any(self.settings.get(name) for name in ("epochs", "steps", "budget")):
            usual["epochs"] = 1.0 if preference else float(min(10, max(1, round(10_000 / rows))))
        return Settings(**{**usual, **self.settings})


def _nothing(*_: Any) -> None:
    pass


@dataclass
class Watch:
    """Who looks on. doing: what begins, in a few words; placing, reading: (bytes done, bytes in all)."""

    doing: Callable[[str], None] = _nothing
    placing: Callable[[int, int], None] = _nothing
    reading: Callable[[int, int], None] = _nothing
    read: Callable[[data.Dataset, Settings, memory.Plan | None], None] = _nothing
    news: Callable[[News], None] = _nothing


def rows_of(
    job: Job, weights: Weights, progress: data.dataset.Progress | None = None
) -> tuple[data.Dataset, ChatFormat | None]:
    """The data as the model will read them, and how it is spoken to (None: a base model, which reads texts)."""
    tokenizer = Tokenizer.of(weights)
    if tokenizer is None:
        raise UnsupportedError(f"{job.model} has no tokenizer: put tokenizer.model beside it")
    chat = ChatFormat.named(job.chat, tokenizer) if job.chat else ChatFormat.of(weights, tokenizer)
    rows = data.read(
        job.data, tokenizer, chat, kind=cast(Any, ROWS[job.objective]),
        max_length=job.max_length or min(weights.config.context, LONGEST), long=cast(Any, job.long), last=job.last,
        append_eos=job.append_eos, held_out=job.held_out, seed=job.settings.get("seed", 0), skip_bad=job.skip_bad,
        progress=progress,
    )  # fmt: skip
    return rows, chat


def start(
    job: Job, out: str | Path, watch: Watch | None = None, wanted: Callable[[], bool] | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train in a new run folder -> the card. wanted: asked whether to stop; `card["result"]["ended"]` is "" then."""
    folder = Run(out)
    with joined(job.device) as ranks:
        if not ranks.first:
            return _Teaching(job, folder, ranks, watch, wanted, clock).run({})
        with folder.locked():
            if folder.card.exists():
                raise RequestError(f"{out}: holds a run already: go on with --resume {out}, or choose another --out")
            return _Teaching(job, folder, ranks, watch, wanted, clock).run({})


def resume(
    out: str | Path, asked: Mapping[str, Any] | None = None, watch: Watch | None = None,
    wanted: Callable[[], bool] | None = None, clock: Clock | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Go on where a run stopped, however it did -> the card. asked: values of `Job` and `Settings` that must be those
    of the run. RequestError, naming it, for anything that is not as it was: options, model, data, versions."""
    folder = Run(out)
    before = folder.read_card()
    if before.get("kind") != KIND:
        raise RequestError(f"{folder.card}: kind is {before.get('kind')!r}, expected {KIND}: another version's run")
    job = Job.read(before["asked"])
    _compare(folder, {**before["asked"], **before["settings"]}, asked or {})
    with joined(job.device) as ranks:
        if not ranks.first:
            return _Teaching(job, folder, ranks, watch, wanted, clock).run(before)
        with folder.locked():
            return _Teaching(job, folder, ranks, watch, wanted, clock).run(before)


def _compare(folder: Run, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        value = list(value) if isinstance(value, tuple) else value
        if name in was and value != was[name]:
            raise RequestError(
                f"{name} is {value}, and was {was[name]} when {folder.folder} was begun: resume it as it was, or start "
                "a new run with --out"
            )


class _Teaching:
    """One process's work on a job."""

    def __init__(
        self, job: Job, folder: Run, ranks: Ranks, watch: Watch | None, wanted: Callable[[], bool] | None,
        clock: Clock | None,
    ) -> None:  # fmt: skip
        self.job, self.folder, self.ranks = job, folder, ranks
        self.watch = watch if watch and ranks.first else Watch()
        self.wanted, self.clock = wanted, clock or Clock()

    def run(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """before: the card of the run that is taken up; {}: a new one."""
        job, weights = self.job, Weights.open(self.job.model)
        self.watch.doing("reading the data")
        rows, chat = rows_of(job, weights, self.watch.reading)
        settings, planned = (Settings.read(before["settings"]), None) if before else self._planned(weights, rows)
        self.watch.read(rows, settings, planned)
        student = self._student(weights, settings)
        now = {"model": weights.fingerprint, "data": rows.report.digest, **card.versions(), "threads": _threads()}
        if before:  # of another number of processes the bits differ in any case
            others = () if before.get("processes") == self.ranks.size else ("threads",)
            _compare(self.folder, before["identity"], {name: it for name, it in now.items() if name not in others})
        self.ranks.agree("model, data and versions", repr(sorted(now.items())).encode())
        facts = dict(before) or {
            "kind": KIND, "begun": machine.now(), "asked": job.facts(), "settings": settings.facts(), "identity": now,
            "machine": card.machine(job.device), "chat": chat.name if chat else None, "data": rows.report.card(),
            "memory": planned.facts() if planned else None, "weights": weights.config.parameters,
            "trained": sum(t.numel() for t in student.trained.values()), "processes": self.ranks.size,
        }  # fmt: skip
        self._write(facts)
        return self._train(student, weights, rows, settings, facts)

    def _planned(self, weights: Weights, rows: data.Dataset) -> tuple[Settings, memory.Plan]:
        """Micro-batch and checkpointing as rank 0's memory allows. RequestError, with the numbers, where nothing
        fits."""
        job, settings, ranks = self.job, self.job.settled(weights.config, len(rows.train)), self.ranks
        limit = job.memory or (memory.free(ranks.here) if job.device == "cpu" else None)
        subject = memory.Subject.of(weights, job.method, job.rank, job.targets, job.base, settings.bits, ranks.size)
        batch, mean = Batch.read(settings.batch), rows.report.tokens / len(rows.train)
        step = round(batch.size * (1 if batch.unit == "tokens" else 1.5 * mean))  # of rows, the longest steps too
        found = memory.plan(
            subject, list(rows.train), step, limit, micro=job.settings.get("micro"),
            checkpointing=job.settings.get("checkpointing"),
        )  # fmt: skip
        micro, checkpointing = ranks.told([found.micro, found.checkpointing])
        return replace(settings, micro=int(micro), checkpointing=bool(checkpointing)), found

    def _student(self, weights: Weights, settings: Settings) -> Student:
        job = self.job
        self.watch.doing("loading the model")
        if job.scratch:
            return Student.fresh(
                weights.config, Tokenizer.of(weights), settings.seed, device=job.device, threads=job.threads
            )
        return Student.open(
            job.model, method=job.method, rank=job.rank, alpha=job.alpha, rslora=job.rslora, targets=job.targets,
            base=job.base, window=job.window, device=job.device, threads=job.threads, seed=settings.seed,
            progress=self.watch.placing,
        )  # fmt: skip

    def _train(
        self, student: Student, weights: Weights, rows: data.Dataset, settings: Settings, facts: dict[str, Any]
    ) -> dict[str, Any]:  # fmt: skip
        if len(rows.faults) and self.ranks.first:
            rows.faults.write(self.folder.folder / "left-out.jsonl")
        held_out = list(rows.held_out[:LOOKED_AT])
        shown = samples.chosen(held_out, settings.samples) if self.ranks.first else []
        began = time.monotonic()
        if "samples" not in facts:
            self.watch.doing("answering held-out prompts")
            facts["samples"] = samples.answers(student, shown)
            self._write(facts)
        closing = 1.5 * (time.monotonic() - began) + max(2.0, 0.02 * (settings.budget or 0.0))
        training = Training(
            student, lambda epoch: rows.train, settings, self.folder, held_out=held_out, ranks=self.ranks,
            objective=self._objective(student, weights, rows), watch=self.watch.news, wanted=self.wanted,
            clock=self.clock, closing=closing,
        )  # fmt: skip
        if training.at.step == 0:
            self.watch.doing("trying the longest rows")
            training.probe(sorted(rows.train, key=len, reverse=True)[:PROBED])
        if self.ranks.first:
            self.folder.board = Board(self.folder.folder / "tensorboard", training.at.step)
        self.watch.doing("learning")
        try:
            at = training.run()
        except BrokenError as error:
            self._result(facts, training.at, str(error))
            raise
        if at.ended:
            del training  # and with it gradients and averages: what follows wants memory as well
            student.together()
            if self.ranks.first:
                self._hand_over(student, weights, settings, shown, at, facts)
        return self._result(facts, at)

    def _objective(self, student: Student, weights: Weights, rows: data.Dataset) -> Objective:
        job, beta = self.job, BETA if self.job.beta is None else self.job.beta
        if job.objective == "sft":
            return sft
        if job.objective == "orpo":
            return Orpo(beta)
        if job.objective == "kto":
            return Kto(beta=beta)
        if job.method != "full":
            return Dpo(switched_off, beta)
        self.watch.doing("reading the answers as the model is now")
        pairs = [cast(Any, pair) for part in (rows.train, rows.held_out) for pair in part]
        both = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
        return Dpo(Remembered.of(student, both, self.folder.folder, weights.fingerprint), beta)

    def _hand_over(
        self, student: Student, weights: Weights, settings: Settings, shown: list[Any], at: Standing,
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        """Adapter or model, samples, picture."""
        self.watch.doing("writing what was learnt")
        facts["made"] = str(export(student, weights, self.job.method, self.folder.folder))
        if shown:
            said = f"Loss on held-out rows: {at.before:.4f} before, {at.best or at.held_out:.4f} after."
            after = samples.answers(student, shown)
            samples.write(self.folder.folder / "samples.md", student, shown, facts["samples"], after, said)
        title = f"{Path(self.job.model).name}, {self.job.objective} ({self.job.method})"
        picture.draw(self.folder.folder / "loss.png", self.folder.notes(), title)

    def _result(self, facts: dict[str, Any], at: Standing, broken: str = "") -> dict[str, Any]:
        facts["result"] = {
            "ended": "broken" if broken else at.ended, "steps": at.step, "of": at.schedule.steps,
            "epochs": round(at.epoch, 4), "tokens": at.tokens, "learnt": at.learnt,
            "seconds": round(self.clock.spent(), 2), "held_out_before": at.before, "held_out": at.held_out,
            "best": at.best, "best_step": at.best_step or None, "memory_bytes": card.memory(self.job.device),
            "at": machine.now(), **({"error": broken} if broken else {}),
        }  # fmt: skip
        self._write(facts)
        return facts

    def _write(self, facts: Mapping[str, Any]) -> None:
        if self.ranks.first:
            self.folder.write_card(facts)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
