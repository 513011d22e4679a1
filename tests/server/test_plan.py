"""A server's memory: decided by what is free, said, and refused where it is not there."""

from __future__ import annotations

import pytest

from bise import machine
from bise.api import BUILT_IN
from bise.errors import RequestError
from bise.server.plan import MOST_SLOTS, SPARE, Plan, plan_memory
from bise.weights import Weights

WEIGHTS = Weights.open(BUILT_IN)
SLOT = 983040  # bytes: 384 slots of the ring, 5 layers, keys and values, 4 heads of 32, 2 bytes


def plan(free: int, slots: int | None = None, reuse: int | None = None, draft: Weights | None = None) -> Plan:
    return plan_memory(WEIGHTS, WEIGHTS.config, 1024, "f16", draft, slots, reuse, SPARE + WEIGHTS.nbytes + free)


@pytest.mark.parametrize("free, slots", [(SLOT, 1), (4 * SLOT, 2), (8 * SLOT + 5, 4), (1000 * SLOT, MOST_SLOTS)])
def test_half_of_what_is_free_goes_to_slots(free: int, slots: int) -> None:
    made = plan(free)
    assert (made.slot, made.slots) == (SLOT, slots)
    assert made.nbytes <= WEIGHTS.nbytes + free


def test_reuse_takes_two_slots_or_a_quarter_of_the_rest() -> None:
    assert plan(1000 * SLOT).reuse == 2 * SLOT
    assert plan(8 * SLOT).reuse == SLOT
    assert plan(8 * SLOT, reuse=0).reuse == 0


def test_what_is_asked_for_is_taken_or_refused_with_the_numbers() -> None:
    assert plan(100 * SLOT, slots=32).slots == 32
    with pytest.raises(RequestError, match=r"32 slots of 0\.9 MiB .* are free: pass a smaller --context"):
        plan(31 * SLOT, slots=32)


def test_a_draft_model_counts_twice() -> None:
    made = plan(100 * SLOT, slots=2, draft=WEIGHTS)
    assert (made.weights, made.slot) == (2 * WEIGHTS.nbytes, 2 * SLOT)
    assert "draft model" in made.line


def test_the_line_says_it_all() -> None:
    assert plan(100 * SLOT).line.splitlines()[1] == (
        "8 at once: 8 x 0.9 MiB, and 1.9 MiB for what was read before; 15.0 MiB in all, 0.60 GiB are free"
    )


def test_free_memory_is_something() -> None:
    assert 1 << 26 < machine.free() < 1 << 44
