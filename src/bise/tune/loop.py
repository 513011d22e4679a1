"""The loop: step after step from rows to better weights, looked at, kept, and taken up again as if nothing was.

A step's gradient is that of the mean loss over all its learnt tokens: sums are added up over the micro-batches and
divided once, so that how they were cut makes no difference.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from . import checkpoint
from .alarm import BrokenError, named
from .budget import CALM, LEAST, OFF, RISE, WARM, Clock, Pace
from .distributed import ALONE, Ranks
from .optimiser import Optimiser
from .pack import Batch, Rows, Step, micro_batches, steps
from .run import Run
from .sample import Example, Sample
from .schedule import Schedule
from .settings import Settings
from .standing import Standing
from .student import Student

# (student, rows) -> the sum of their losses, what it is to be divided by, and sums of figures to be shown
Objective = Callable[[Student, Sequence[Any]], tuple[Tensor, int, dict[str, float]]]
EVERY = 300.0  # seconds between two checkpoints
LOOKS = 10  # evaluations in a run
NEVER = 10**9  # steps: more than anybody waits for


def sft(student: Student, samples: Sequence[Sample]) -> tuple[Tensor, int, dict[str, float]]:
    """Supervised fine-tuning: -log p of every learnt token, in nats."""
    return student.loss(samples), sum(sample.targets for sample in samples), {}


@dataclass(frozen=True)
class News:
    """What there is to see, after each step and each evaluation."""

    at: Standing
    loss: float | None  # of the last step; None: no step was made yet
    speed: float  # tokens read a second, lately
    left: float | None  # seconds, about; None: not known yet


class Interrupted(Exception):
    """Somebody wants it to end, or the time is up: the step that was begun has not been made."""


class Training:
    """One run. `run()` makes its steps and leaves the best weights in the student; `at` says how far it is."""

    def __init__(
        self, student: Student, rows: Rows, settings: Settings, folder: Run, *, held_out: Sequence[Example] = (),
        objective: Objective = sft, ranks: Ranks | None = None, watch: Callable[[News], None] | None = None,
        wanted: Callable[[], bool] | None = None, clock: Clock | None = None, closing: float = 0.0,
    ) -> None:  # fmt: skip
        """wanted: asked between two micro-batches whether to stop; clock: when it began, for the budget; closing:
        seconds that the caller needs after the last step. Where the folder has a checkpoint, it goes on from there."""
        self.student, self.rows, self.settings, self.folder = student, rows, settings, folder
        self.held_out, self.objective, self.ranks = held_out, objective, ranks or ALONE
        self.watch, self.wanted, self.clock = watch, wanted or (lambda: False), clock or Clock()
        student.share(self.ranks)
        self.optimiser = chosen(student, settings)
        self.batch = Batch.read(settings.batch)
        student.noise, student.checkpointing = settings.noise, settings.checkpointing
        self.at = self._taken_up() if folder.last.exists() else self._begun()
        self.pace = Pace(closing, self.at.look_seconds)
        self.loss: float | None = None
        self._speeds: deque[float] = deque(maxlen=16)  # tokens a second of the last steps
        self._saved = self._learning = time.monotonic()

    def run(self) -> Standing:
        """To the end, or to what ends it; stopped on somebody's wish, `at.ended` is "". Each rank's student is left
        with what it keeps. BrokenError where the loss has become no number, or explodes."""
        try:
            if not self.at.ended:
                self._go()
        except Interrupted:
            self._save()
            return self.at
        finally:
            self.folder.close()
        self.ranks.wait()  # rank 0 writes the best, all read it
        if self.folder.best.exists():
            checkpoint.take(self.folder.best, self.student)
        return self.at

    def probe(self, examples: Sequence[Example]) -> None:
        """There and back with one micro-batch of these rows, and nothing learnt: what does not fit into memory fails
        before anything else was done. RequestError where a GPU says so."""
        self.student.noise = 0.0  # which would draw from the student's chance
        pack = micro_batches(examples, self.settings.micro)[0]
        try:
            loss = self.objective(self.student, pack)[0]
            loss.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise RequestError(
                f"{sum(map(len, pack)):,} tokens at once, the longest row first, do not fit into the GPU's memory: "
                "lower --micro or --max-length, or take --checkpointing on"
            ) from None
        finally:
            self.optimiser.zero()
            self.student.noise = self.settings.noise

    def _go(self) -> None:
        if self.held_out and self.at.before is None:
            self._look()
        for step in itertools.islice(self._stream(), self.at.step, None):
            self._settle()
            if self.at.ended or self.at.step >= self.at.schedule.steps or self._no_time():
                break
            self._learn(step)
        self.at.ended = self.at.ended or "finished"
        self._settle()
        self._save()

    def _stream(self) -> Iterator[Step]:
        return steps(self.rows, self.batch, self.settings.seed, self.settings.epochs)

    # ---- beginning

    def _begun(self) -> Standing:
        s = self.settings
        if self._writes and self.folder.metrics.exists():
            self.folder.trim(-1)  # of a run that was killed before its first checkpoint
        if s.budget is not None:
            rise = int(s.warmup) if s.warmup >= 1 else RISE
            return Standing(Schedule.over("constant", NEVER, rise), planned=False)
        count = s.steps or sum(1 for _ in self._stream())
        every = s.eval_every or max(1, math.ceil(count / LOOKS))
        return Standing(Schedule.over(s.schedule, count, s.warmup_steps(count), s.floor, s.fall), every)

    def _taken_up(self) -> Standing:
        at = Standing.read(checkpoint.restore(self.folder.last, self.student, self.optimiser))
        notes = self.folder.notes()
        self.clock.before += max([at.seconds, *(note["seconds"] for note in notes)])  # what was lost counts too
        if self._writes:
            self.folder.trim(at.step)
        if at.best_step == at.step > 0:  # it may have ended before this was written
            checkpoint.keep(self.folder.best, self.student, at.step, self.ranks)
        return at

    # ---- a step

    def _learn(self, step: Step) -> None:
        at, started = self.at, time.monotonic()
        loss, count, figures = self._gradient(step.examples)
        norm = self.optimiser.clip(self.settings.clip, self.ranks)
        wrong = at.alarm.look(loss, norm)
        if wrong:
            raise self._broken(wrong, step)
        share = at.schedule.share(at.step)
        self.optimiser.step(share)
        seconds = time.monotonic() - started
        self.pace.add(seconds)
        self._speeds.append(step.tokens / seconds)
        at.step, at.epoch, self.loss = at.step + 1, step.epoch, loss
        at.tokens, at.learnt = at.tokens + step.tokens, at.learnt + count
        self._note({
            "epoch": round(step.epoch, 4), "tokens": at.tokens, "loss": loss, **figures, "norm": norm,
            "rate": self.settings.rate * share, "tokens_per_second": round(step.tokens / seconds, 1),
        })  # fmt: skip
        self._tell()

    def _gradient(self, examples: Sequence[Example]) -> tuple[float, int, dict[str, float]]:
        """The mean loss of a step, its count and its figures; its gradient lies in the optimiser."""
        self.optimiser.zero()
        self.student.stir(self.settings.seed, self.at.step, self.ranks.rank)
        self._pause()

        def back(loss: Tensor) -> None:
            loss.backward()  # type: ignore[no-untyped-call]
            self._pause()

        loss, count, figures = self._sums(examples, back)
        for gradient in self.optimiser.gradients:
            gradient.div_(count)
        return loss / count, count, {name: value / count for name, value in figures.items()}

    def _sums(self, examples: Sequence[Example], back: Callable[[Tensor], None]) -> tuple[float, int, dict[str, float]]:
        """Sums over all rows, of all ranks. back: what is done with each micro-batch's loss."""
        sums: dict[str, float] = {"loss": 0.0, "count": 0}
        for pack, counts in self.ranks.share(self._packs(examples)):
            loss, count, figures = self.objective(self.student, pack)
            back(counts * loss)
            for name, value in {"loss": float(loss.detach()), "count": count, **figures}.items():
                sums[name] = sums.get(name, 0.0) + counts * value
        sums = dict(zip(sums, self.ranks.total(list(sums.values())), strict=True))
        return sums.pop("loss"), max(1, int(sums.pop("count"))), sums

    def _packs(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Micro-batches, so small that there is work for every rank."""
        share = -(-sum(map(len, examples)) // self.ranks.size)
        return micro_batches(examples, min(self.settings.micro, share))

    def _broken(self, wrong: str, step: Step) -> BrokenError:
        """The error that names the rows: those whose loss alone is no number, or all of the step."""
        guilty = [example for example in step.examples if not self._sound(example)]
        if "explodes" not in wrong:
            self._save()  # the weights are still those before this step
        kept = f"step {self.at.best_step} has the best weights" if self.at.best_step else "no weights were kept yet"
        return BrokenError(
            f"step {self.at.step + 1}: {wrong}, in {named(guilty or step.examples)}: look at these rows, or lower "
            f"--rate; {kept} ({self.folder.folder})"
        )

    def _sound(self, example: Example) -> bool:
        """Whether a row's own loss is a number, as far as can be said of one row alone (KTO compares several)."""
        with torch.no_grad():
            try:
                return math.isfinite(float(self.objective(self.student, [example])[0]))
            except RequestError:
                return True

    # ---- held-out rows

    def _settle(self) -> None:
        """Everything that belongs to the standing as it is: an evaluation that is due, the end of patience, a plan,
        a checkpoint."""
        at, s = self.at, self.settings
        due = at.ended or at.step == at.schedule.steps or (at.eval_every and at.step % at.eval_every == 0)
        if self.held_out and at.step > at.looked and due:
            self._look()
            if s.patience and at.worse >= s.patience:
                at.ended = at.ended or "early stop"
        elif at.step and ((s.save_every and at.step % s.save_every == 0) or self._stale()):
            self._save()
        self._plan()

    def _look(self) -> None:
        """The loss on the held-out rows; the weights with the lowest are kept."""
        at, started = self.at, time.monotonic()
        with torch.no_grad():
            loss, count, figures = self._sums(self.held_out, lambda loss: self._pause())
        at.look_seconds = self.pace.evaluation = time.monotonic() - started
        at.held_out, at.looked = loss / count, at.step
        better = at.step > 0 and (at.best is None or at.held_out < at.best)
        if at.step == 0:
            at.before = at.held_out
        elif better:
            at.best, at.best_step, at.worse = at.held_out, at.step, 0
        else:
            at.worse += 1
        self._note({"held_out": at.held_out, **{name: value / count for name, value in figures.items()}})
        self._save()
        if better:
            checkpoint.keep(self.folder.best, self.student, at.step, self.ranks)
        self._tell()

    # ---- time

    def _plan(self) -> None:
        """Under a budget: set the number of steps once the speed is known, and bend the schedule when it changes."""
        at, s = self.at, self.settings
        if s.budget is None or at.ended or len(self.pace.steps) < LEAST:
            return
        spent, learning = self.ranks.told([self.clock.spent(), time.monotonic() - self._learning])
        if not at.planned and learning < WARM * s.budget:
            return
        if not at.planned:
            at.eval_every = s.eval_every or int(self.ranks.told([self.pace.eval_every(s.budget)])[0])
        more = self.pace.possible(s.budget - spent, at.eval_every if self.held_out else None)
        possible = at.step + int(self.ranks.told([more])[0])
        if not at.planned:
            rise = max(at.step, min(at.schedule.warmup, possible // 10))
            at.schedule, at.planned = Schedule.over(s.schedule, possible, rise, s.floor, s.fall), True
            self._note({"steps": at.schedule.steps})
        elif abs(possible - at.schedule.steps) > max(1.0, OFF * (possible - at.step)) and at.step % CALM == 0:
            at.schedule = at.schedule.landing(at.step, possible)
            self._note({"steps": at.schedule.steps})

    def _no_time(self) -> bool:
        """Under a budget: no time for another step; `ended` says so then."""
        budget = self.settings.budget
        if self.ranks.any(budget is not None and not self.pace.fits(budget - self.clock.spent())):
            self.at.ended = "time"
        return self.at.ended == "time"

    def _stale(self) -> bool:
        """The last checkpoint is an old one, by rank 0's clock."""
        return self.ranks.told([time.monotonic() - self._saved])[0] > EVERY

    def _pause(self) -> None:
        """Between two micro-batches: whoever wants it to end gets it, of all ranks."""
        if self.ranks.any(self.wanted()):
            raise Interrupted

    # ---- what stays

    @property
    def _writes(self) -> bool:
        return self.ranks.first

    def _save(self) -> None:
        self.at.seconds, self._saved = self.clock.spent(), time.monotonic()
        if self._writes:
            self.folder.sync()
        checkpoint.save(self.folder.last, self.student, self.optimiser, asdict(self.at), self.ranks)

    def _note(self, fact: dict[str, Any]) -> None:
        if self._writes:
            self.folder.note({"step": self.at.step, **fact, "seconds": round(self.clock.spent(), 3)})

    def _tell(self) -> None:
        if self.watch:
            speed = sum(self._speeds) / len(self._speeds) if self._speeds else 0.0
            self.watch(News(self.at, self.loss, speed, self._left()))

    def _left(self) -> float | None:
        """Seconds to the end, about."""
        at, budget = self.at, self.settings.budget
        if budget is not None and not at.planned:
            return budget - self.clock.spent()
        if not self.pace.step:
            return None
        steps_left = at.schedule.steps - at.step
        looks = steps_left / at.eval_every if at.eval_every and self.held_out else 0
        return steps_left * self.pace.step + looks * self.pace.evaluation + self.pace.closing


def chosen(student: Student, settings: Settings) -> Optimiser:
    """The optimiser that the settings ask for, over everything that is trained and kept here."""
    s = settings
    if s.matrix_rate is not None:
        return Optimiser.muon(student.kept, s.rate, s.matrix_rate, s.decay, s.bits)
    return Optimiser.adamw(student.kept, s.rate, s.betas, s.decay, s.ratio, s.bits)
