"""POST /v1/responses through OpenAI's own client, and its events as OpenAI documents them."""

import asyncio

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

import bise
from bise.server.api import items
from bise.server.faults import Fault

ASKED = "Tell me a story about a fox."
GIVEN = {"model": "puff", "input": ASKED, "temperature": 0}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


def post(server, **body):
    return httpx.post(server.url + "/v1/responses", json={"input": ASKED, **body}, timeout=60)


def test_the_models_own_reply(client, puff):
    answer = client.responses.create(**GIVEN, max_output_tokens=30)
    own = puff.chat([{"role": "user", "content": ASKED}], max_tokens=30)
    assert answer.output_text == own.text and answer.usage.input_tokens == own.prompt_tokens
    assert answer.usage.output_tokens == 30 and answer.usage.total_tokens == 30 + own.prompt_tokens
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].role == "assistant" and answer.output[0].status == "incomplete"


def test_a_reply_that_ends(client):
    answer = client.responses.create(**GIVEN, extra_body={"stop": " little"})
    assert answer.status == "completed" and answer.incomplete_details is None and answer.error is None
    assert answer.output_text == "Once upon a time, there was a" and answer.completed_at >= answer.created_at


def test_items_and_instructions(client, puff):
    def count(messages):
        return len(puff.chat_format.encode(messages))

    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    shapes = [
        ([{"role": "user", "content": ASKED}], told[1:]),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASKED}]}], told[1:]),
        ([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": ASKED}], told),
        ([told[1], {"role": "assistant", "content": [{"type": "output_text", "text": "Once."}]}, told[1]], [told[1], {"role": "assistant", "content": "Once."}, told[1]]),
        ([told[1], {"role": "assistant", "content": []}, told[1]], [told[1], told[1]]),
    ]  # fmt: skip
    for given, messages in shapes:
        answer = client.responses.create(model="puff", input=given, max_output_tokens=1)
        assert answer.usage.input_tokens == count(messages)
    answer = client.responses.create(**GIVEN, instructions="Be brief.", max_output_tokens=1)
    assert answer.usage.input_tokens == count(told) and answer.instructions == "Be brief."


def test_a_conversation_goes_on(client, puff):
    first = client.responses.create(**GIVEN, instructions="Be brief.", max_output_tokens=12)
    second = client.responses.create(
        model="puff", input="And then?", previous_response_id=first.id, max_output_tokens=4
    )
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And then?"}]  # fmt: skip
    assert second.usage.input_tokens == len(puff.chat_format.encode(messages))  # the instructions were the first one's
    assert second.previous_response_id == first.id
    third = client.responses.create(model="puff", input="And?", previous_response_id=second.id, max_output_tokens=1)
    assert third.usage.input_tokens > second.usage.input_tokens
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text and again.usage == first.usage
    client.responses.delete(first.id)
    for refused in (lambda: client.responses.retrieve(first.id), lambda: client.responses.delete(first.id)):
        with pytest.raises(openai.NotFoundError) as error:
            refused()
        assert error.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError, match="not kept") as error:
        client.responses.create(model="puff", input="x", previous_response_id=first.id)
    assert error.value.param == "previous_response_id"


def test_not_kept_unless_it_may_be(client):
    answer = client.responses.create(**GIVEN, max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_events_in_their_order(client):
    events = list(client.responses.create(**GIVEN, max_output_tokens=10, stream=True))
    whole = client.responses.create(**GIVEN, max_output_tokens=10)
    kinds = [e.type.removeprefix("response.") for e in events]
    deltas = kinds.count("output_text.delta")
    assert 1 < deltas <= 10
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
                     "output_text.done", "content_part.done", "output_item.done", "incomplete"]  # fmt: skip
    assert [e.sequence_number for e in events] == list(range(len(events)))
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == whole.output_text == events[-1].response.output_text == events[-5 + 1].text
    assert events[0].response.status == events[1].response.status == "in_progress" and events[0].response.output == []
    assert len({e.item_id for e in events if hasattr(e, "item_id")} | {events[2].item.id, events[-2].item.id}) == 1
    assert events[-1].response.usage.output_tokens == 10
    assert client.responses.retrieve(events[0].response.id).output_text == said


def test_the_clients_own_stream(client):
    with client.responses.stream(**GIVEN, extra_body={"stop": " little"}) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text == "Once upon a time, there was a" and final.status == "completed"


def test_logprobs(client):
    given = {**GIVEN, "include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 5}
    part = client.responses.create(**given).output[0].content[0]
    assert "".join(t.token for t in part.logprobs) == part.text and all(len(t.top_logprobs) == 2 for t in part.logprobs)
    deltas = [e for e in client.responses.create(**given, stream=True) if e.type == "response.output_text.delta"]
    assert [t.logprob for e in deltas for t in e.logprobs] == [t.logprob for t in part.logprobs]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def test_parse(client):
    answer = client.responses.parse(model="puff", input="Who are you?", text_format=Person, max_output_tokens=200)
    assert isinstance(answer.output_parsed, Person) and answer.status == "completed"
    with client.responses.stream(model="puff", input="Who?", text_format=Person, max_output_tokens=200) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)


def test_async_and_many(server):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(client.responses.create(**GIVEN, max_output_tokens=8) for _ in range(16)))

    answers = asyncio.run(all_of_them())
    assert len({a.output_text for a in answers}) == 1 and len({a.id for a in answers}) == 16


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "a"}] * 1025}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": 3}}, "text.format"),
        ({"text": {"format": {"type": "json_schema"}}}, None),
        ({"text": {"format": {"type": "xml"}}}, None),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)  # fmt: skip
def test_refused_by_name(server, body, param):
    answer = post(server, **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_too_long_for_the_context(server):
    error = post(server, max_output_tokens=5000).json()["error"]
    assert error["code"] == "context_length_exceeded" and "5,000" in error["message"]


def test_one_tenant_cannot_see_anothers(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a" * 32 + "\n" + "b" * 32 + "\n")
    keys.chmod(0o600)
    server = start("--key-file", str(keys))
    clients = (openai.OpenAI(base_url=server.url + "/v1", api_key=k * 32, max_retries=0) for k in "ab")
    with next(clients) as ann, next(clients) as bob:
        hers = ann.responses.create(**GIVEN, max_output_tokens=2)
        assert ann.responses.retrieve(hers.id).id == hers.id
        for refused in (lambda: bob.responses.retrieve(hers.id), lambda: bob.responses.delete(hers.id)):
            with pytest.raises(openai.NotFoundError):
                refused()
        with pytest.raises(openai.BadRequestError):
            bob.responses.create(**GIVEN, previous_response_id=hers.id)


def test_calls_side_by_side_are_one_message():
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    found = items.messages_of([
        {"role": "assistant", "content": "Well."}, {**call, "call_id": "a"}, {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {**call, "call_id": "c"},
    ])  # fmt: skip
    assert [m["role"] for m in found] == ["assistant", "tool", "tool", "assistant"]
    assert [c["id"] for c in found[0]["tool_calls"]] == ["a", "b"] and found[0]["content"] == "Well."
    assert found[2] == {"role": "tool", "tool_call_id": "b", "content": "2"}
    with pytest.raises(Fault, match="arguments"):
        items.messages_of([{"type": "function_call", "name": "f", "call_id": "a"}])
