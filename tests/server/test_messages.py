"""POST /v1/messages through Anthropic's own client, and its events as Anthropic documents them."""

import asyncio
import json

import anthropic
import httpx
import pytest

import bise
from bise.server.api import content
from bise.server.faults import Fault

ASKED = [{"role": "user", "content": "Tell me a story about a fox."}]
GREEDY = {"temperature": 0}
GIVEN = {"model": "puff", "messages": ASKED, "extra_body": GREEDY}


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


def post(server, path="", **body):
    return httpx.post(f"{server.url}/v1/messages{path}", json={"messages": ASKED, "max_tokens": 4, **body}, timeout=60)


def test_the_models_own_reply(client, puff):
    answer = client.messages.create(**GIVEN, max_tokens=30)
    own = puff.chat(ASKED, max_tokens=30)
    assert [block.text for block in answer.content] == [own.text]
    assert answer.stop_reason == "max_tokens" and answer.stop_sequence is None and answer.role == "assistant"
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == own.prompt_tokens
    assert answer.usage.output_tokens == 30
    again = client.messages.create(**GIVEN, max_tokens=1)
    assert again.usage.cache_read_input_tokens > 0


def test_why_it_ended(client):
    stopped = client.messages.create(**GIVEN, max_tokens=50, stop_sequences=["xyz", " little"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == " little"
    assert stopped.content[0].text == "Once upon a time, there was a"
    ended = client.messages.create(**GIVEN, max_tokens=900)
    assert ended.stop_reason == "end_turn" and ended.stop_sequence is None


def test_blocks_and_system(client, puff):
    def count(messages):
        return len(puff.chat_format.encode(messages))

    told = [{"role": "system", "content": "Be brief."}, *ASKED]
    blocks = [{"type": "text", "text": ASKED[0]["content"], "cache_control": {"type": "ephemeral"}}]
    for given, messages in (
        ({"messages": ASKED, "system": "Be brief."}, told),
        ({"messages": ASKED, "system": [{"type": "text", "text": "Be brief."}]}, told),
        ({"messages": [{"role": "user", "content": blocks}]}, ASKED),
        ({"messages": [*ASKED, *ASKED]}, [*ASKED, *ASKED]),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Once."}, *ASKED]}, [*ASKED, {"role": "assistant", "content": "Once."}, *ASKED]),
        ({"messages": [*ASKED, {"role": "assistant", "content": []}, *ASKED]}, [*ASKED, *ASKED]),
    ):  # fmt: skip
        usage = client.messages.create(model="puff", max_tokens=1, **given).usage
        assert usage.input_tokens + usage.cache_read_input_tokens == count(messages)
        assert client.messages.count_tokens(model="puff", **given).input_tokens == count(messages)


def test_the_assistants_beginning_is_continued(client):
    given = {**GIVEN, "messages": [*ASKED, {"role": "assistant", "content": "Once upon a"}]}
    answer = client.messages.create(**given, max_tokens=8)
    assert answer.content[0].text.startswith(" time")


def test_events_in_their_order(client):
    whole = client.messages.create(**GIVEN, max_tokens=12)
    events = list(client.messages.create(**GIVEN, max_tokens=12, stream=True))
    kinds = [e.type for e in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == ["message_start", *["ping"] * kinds.count("ping"), "content_block_start", *["content_block_delta"] * deltas,
                     "content_block_stop", "message_delta", "message_stop"]  # fmt: skip
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == whole.content[0].text
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "max_tokens" and events[-2].usage.output_tokens == 12
    total = events[-2].usage.input_tokens + events[-2].usage.cache_read_input_tokens
    assert total == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_events_as_they_are_sent(server):
    body = {"messages": ASKED, "max_tokens": 3, "stream": True, "temperature": 0}
    with httpx.stream("POST", server.url + "/v1/messages", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    names, data = (
        [n.removeprefix("event: ") for n in lines[::2]],
        [json.loads(d.removeprefix("data: ")) for d in lines[1::2]],
    )
    assert names == [d["type"] for d in data] and names[:2] == ["message_start", "ping"] and names[-1] == "message_stop"


def test_the_clients_own_stream(client):
    with client.messages.stream(**GIVEN, max_tokens=12) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].text == text and final.usage.output_tokens == 12 and final.stop_reason == "max_tokens"


def test_async(server):
    async def both():
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            whole = await client.messages.create(**GIVEN, max_tokens=8)
            async with client.messages.stream(**GIVEN, max_tokens=8) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            many = await asyncio.gather(*(client.messages.create(**GIVEN, max_tokens=4) for _ in range(12)))
        return whole, text, many

    whole, text, many = asyncio.run(both())
    assert whole.content[0].text == text and len({m.content[0].text for m in many}) == 1


def test_a_schema(client):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["age"], "additionalProperties": False}  # fmt: skip
    form = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    answer = client.messages.create(model="puff", messages=ASKED, max_tokens=60, extra_body=form)
    assert 0 <= json.loads(answer.content[0].text)["age"] <= 99 and answer.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"messages": []}, "messages is a list of 0"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0: role is 'system'"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content is int"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "type 'image', this model reads text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text is NoneType"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "v1 has no tools"),
        ({"tool_choice": {"type": "all"}}, "tool_choice: type is 'all'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is asked for"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"container": "x"}, "unknown field container"),
        ({"max_tokens": 5000}, "maximum context length is 1,024"),
        ({"output_config": {"format": {"type": "xml"}}}, "json_schema"),
    ],
)  # fmt: skip
def test_refused_in_anthropics_shape(server, client, body, said):
    answer = post(server, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error" and answer.json()["error"]["type"] == "invalid_request_error"
    assert said in answer.json()["error"]["message"]
    assert answer.headers["request-id"].startswith("req_")


def test_errors_as_the_client_knows_them(client):
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(model="claude", messages=ASKED, max_tokens=1)
    assert error.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(model="puff", messages=[{"role": "user", "content": [{"type": "image"}]}])


# --- what becomes of blocks


def test_results_come_before_what_is_said():
    use = {"type": "tool_use", "id": "abcdefgh1", "name": "f", "input": {"x": "ü"}}
    found = content.conversation(None, [
        {"role": "assistant", "content": [{"type": "text", "text": "Well."}, use, {**use, "id": "abcdefgh2"}]},
        {"role": "user", "content": [
            {"type": "text", "text": "So?"}, {"type": "tool_result", "tool_use_id": "abcdefgh1", "content": "1"},
            {"type": "tool_result", "tool_use_id": "abcdefgh2", "is_error": True, "content": [{"type": "text", "text": "no"}]},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "abcdefgh3"}]},
    ])  # fmt: skip
    assert [m["role"] for m in found] == ["assistant", "tool", "tool", "user", "tool"]
    assert found[0]["content"] == "Well." and [c["id"] for c in found[0]["tool_calls"]] == ["abcdefgh1", "abcdefgh2"]
    assert json.loads(found[0]["tool_calls"][0]["function"]["arguments"]) == {"x": "ü"}
    assert (
        found[1]["content"] == "1" and json.loads(found[2]["content"]) == {"error": "no"} and found[4]["content"] == ""
    )


def test_a_call_is_not_continued():
    use = {"type": "tool_use", "id": "abcdefgh1", "name": "f", "input": {}}
    assert "prefix" not in content.conversation(None, [{"role": "assistant", "content": [use]}])[-1]


@pytest.mark.parametrize(
    "block", [{"type": "tool_use", "id": "a"}, {"type": "tool_use", "name": "f"}, {"type": "thinking"}]
)
def test_blocks_that_cannot_be_read(block):
    with pytest.raises(Fault, match=r"messages\.0\.content\.0"):
        content.conversation(None, [{"role": "assistant", "content": [block]}])


def test_choices():
    assert content.choice_of(None) == ("auto", True)
    assert content.choice_of({"type": "any", "disable_parallel_tool_use": True}) == ("required", False)
    assert content.choice_of({"type": "tool", "name": "f"}) == ({"function": {"name": "f"}}, True)
    assert content.choice_of({"type": "none"}) == ("none", True)
