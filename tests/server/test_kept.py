"""Kept responses are bounded, and each tenant's own."""

import pytest

from bise.server import limits
from bise.server.api.kept import Kept, Responses


def kept(id: str, size: int = 0) -> Kept:
    return Kept({"id": id}, [{"role": "user", "content": "x" * size}])


def test_kept_until_dropped():
    all = Responses()
    all.put("ann", kept("a"))
    assert all.get("ann", "a").response == {"id": "a"} and all.get("bob", "a") is None
    assert (
        not all.drop("bob", "a") and all.drop("ann", "a") and not all.drop("ann", "a") and all.get("ann", "a") is None
    )


def test_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(limits, "RESPONSES", 3)
    all = Responses()
    all.put("bob", kept("b"))
    for i in range(5):
        all.put("ann", kept(f"a{i}"))
    assert [all.get("ann", f"a{i}") is None for i in range(5)] == [True, True, False, False, False]
    assert all.get("bob", "b")


@pytest.mark.parametrize("sizes", [[600] * 10, [900, 10, 900, 5000, 900]])
def test_bytes_are_bounded(monkeypatch, sizes):
    monkeypatch.setattr(limits, "RESPONSE_BYTES", 1500)
    monkeypatch.setattr(limits, "ALL_RESPONSE_BYTES", 2500)
    all = Responses()
    for i, size in enumerate(sizes):
        for tenant in ("ann", "bob", "eve"):
            all.put(tenant, kept(f"{tenant}{i}", size))
            held = [len(str(k.messages)) for k, _ in all._all.values()]
            assert sum(held) < 2500
    last = len(sizes) - 1
    assert all.get("eve", f"eve{last}") and all.get("ann", "ann0") is None


def test_nothing_is_left_behind():
    all = Responses()
    for i in range(10):
        all.put("ann", kept(str(i)))
    for i in range(10):
        all.drop("ann", str(i))
    assert not all._all and not all._count and not all._bytes
