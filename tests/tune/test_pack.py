"""Rows to steps to micro-batches: nothing lost, nothing twice, and the cut makes no difference."""

from __future__ import annotations

import itertools

import pytest

from bise.errors import RequestError
from bise.tune.pack import Batch, micro_batches, order, steps

from .pupil import sentences

ROWS = sentences(40)


def lines(step) -> list[int]:
    return [example.line for example in step.examples]


@pytest.mark.parametrize("batch", ["1", "7", "40", "64t", "200t"])
def test_every_row_once_an_epoch(batch: str) -> None:
    found = list(steps(lambda epoch: ROWS, Batch.read(batch), 5, 3))
    stream = list(itertools.chain.from_iterable(map(lines, found)))
    for epoch in range(3):
        assert stream[epoch * 40 : epoch * 40 + 40] == [ROWS[i].line for i in order(40, 5, epoch)]
    assert len(stream) == 120 and found[-1].epoch == 3
    assert stream[:40] != stream[40:80]


def test_a_step_holds_what_batch_says() -> None:
    assert {len(s.examples) for s in itertools.islice(steps(lambda e: ROWS, Batch.read("7"), 0), 50)} == {7}
    for step in itertools.islice(steps(lambda e: ROWS, Batch.read("100t"), 0), 50):
        assert step.tokens <= 100
    assert {len(s.examples) for s in steps(lambda e: ROWS, Batch.read("3t"), 0, 1)} == {1}  # too long, not lost


def test_part_of_an_epoch() -> None:
    found = list(steps(lambda epoch: ROWS, Batch.read("8"), 0, 1.5))
    assert sum(len(s.examples) for s in found) == 60 and found[-1].epoch == 1.5


def test_rows_may_change_with_the_epoch() -> None:
    parts = {0: ROWS[:10], 1: ROWS[10:15]}
    found = list(steps(lambda epoch: parts[epoch], Batch.read("4"), 0, 2))
    assert sorted(itertools.chain.from_iterable(map(lines, found))) == list(range(1, 16))


@pytest.mark.parametrize("most", [1, 30, 64, 10_000])
def test_micro_batches(most: int) -> None:
    packs = micro_batches(ROWS, most)
    assert sorted(row.line for pack in packs for row in pack) == [row.line for row in ROWS]
    assert all(sum(map(len, pack)) <= most or len(pack) == 1 for pack in packs)
    assert len(packs[0][0]) == max(map(len, ROWS))


def test_nobody_is_alone_without_need() -> None:
    rows = sorted(ROWS, key=len)[:5]
    most = sum(map(len, rows[1:]))
    assert [len(pack) for pack in micro_batches(rows, most)] == [3, 2]


@pytest.mark.parametrize("text", ["", "0", "-3", "4k", "1.5", "t", "9" * 12])
def test_batches_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="expected rows"):
        Batch.read(text)
    assert str(Batch.read("4096t")) == "4096t" and str(Batch.read("16")) == "16"
