"""litellm, which many programs speak through: openai/<name>, text-completion-openai/<name>, streams, async, faults."""

from __future__ import annotations

import asyncio
import os
import warnings
from typing import Any

import pytest

from server.careless import swept  # noqa: F401
from server.running import Server, until

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no list of prices from the network
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    litellm = pytest.importorskip("litellm")

pytestmark = pytest.mark.filterwarnings("default")
GREEDY = {"temperature": 0, "max_tokens": 24}
STORY = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me one about a fox."}]


@pytest.fixture
def where(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    return {"api_base": f"{server.url}/v1", "api_key": "none", **GREEDY}


def joined(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_chat(server: Server, where: dict[str, Any]) -> None:
    answer = litellm.completion(f"openai/{server.model}", STORY, **where)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    again = litellm.completion(f"hosted_vllm/{server.model}", STORY, **where)
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_stream(server: Server, where: dict[str, Any]) -> None:
    name = f"openai/{server.model}"
    chunks = list(litellm.completion(name, STORY, stream=True, stream_options={"include_usage": True}, **where))
    assert joined(chunks) == litellm.completion(name, STORY, **where).choices[0].message.content
    assert [c.usage.completion_tokens for c in chunks if getattr(c, "usage", None)] == [24]


def test_completion(server: Server, where: dict[str, Any]) -> None:
    name = f"text-completion-openai/{server.model}"
    text = litellm.text_completion(model=name, prompt="Once upon a time", **where).choices[0].text
    pieces = litellm.text_completion(model=name, prompt="Once upon a time", stream=True, **where)
    assert text and "".join(piece.choices[0].text or "" for piece in pieces) == text


async def _together(name: str, where: dict[str, Any]) -> tuple[list[str], str]:
    whole = await asyncio.gather(*(litellm.acompletion(name, STORY, **where) for _ in range(8)))
    stream = await litellm.acompletion(name, STORY, stream=True, **where)
    return [answer.choices[0].message.content for answer in whole], joined([chunk async for chunk in stream])


def test_async(server: Server, where: dict[str, Any]) -> None:
    whole, streamed = asyncio.run(_together(f"openai/{server.model}", where))
    assert set(whole) == {streamed} and len(whole) == 8


def test_embedding(server: Server, where: dict[str, Any]) -> None:
    del where["temperature"], where["max_tokens"]
    found = litellm.embedding(f"openai/{server.model}", ["The fox ran away.", "A red ball."], **where)
    one, two = (entry["embedding"] for entry in found.data)
    assert len(one) == len(two) > 100 and one != two


def test_faults(start: Any) -> None:
    """Each under the name that programs catch, after one request: what fails again the same way is not tried again."""
    server = start()
    where = {"api_base": f"{server.url}/v1", "api_key": "none", **GREEDY}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(f"openai/{server.model}", [{"role": "user", "content": "fox " * 2000}], **where)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion("openai/nobody", STORY, **where)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(f"openai/{server.model}", STORY, **{**where, "temperature": -1})
    until(lambda: len(server.lines()) >= 3)
    assert [line["status"] for line in server.lines() if line["method"] == "POST"] == [400, 404, 400]


def test_a_key_is_wanted(start: Any, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("north-wind-north-wind\n")
    keys.chmod(0o600)
    server = start("--key-file", str(keys))
    where = {"api_base": f"{server.url}/v1", **GREEDY}
    answer = litellm.completion(f"openai/{server.model}", STORY, api_key="north-wind-north-wind", **where)
    assert answer.choices[0].message.content
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(f"openai/{server.model}", STORY, api_key="south-wind-south-wind", **where)
