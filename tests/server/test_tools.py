"""Calls that are demanded of a model that knows nothing: through each API's own client, they parse and validate."""

import json
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import jsonschema
import openai
import pytest

from server.running import Server
from test_grammar import HERMES
from tiny import tiny_config, tiny_v3_vocabulary, tiny_weights, write_tiny_gguf

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"], "additionalProperties": False}  # fmt: skip
NONE = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": SCHEMA, "now": NONE}
CHAT = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
RESPONSES = [{"type": "function", "name": n, "parameters": s, "strict": True} for n, s in SCHEMAS.items()]
ANTHROPIC = [{"name": n, "description": "d", "input_schema": s} for n, s in SCHEMAS.items()]
ASKED = [{"role": "user", "content": "hi"}]
SEEDS = range(5)


@pytest.fixture(scope="module")
def v3(tmp_path_factory) -> Iterator[Server]:
    """A random model with Mistral's format v3."""
    config = tiny_config(vocab_size=320, context=8192)
    folder: Path = tmp_path_factory.mktemp("v3")
    path = write_tiny_gguf(folder / "tiny.gguf", config, tiny_weights(config, 3), **tiny_v3_vocabulary(320))
    server = Server(str(path), "--slots", "4")
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(v3):
    with openai.OpenAI(base_url=v3.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(v3):
    with anthropic.Anthropic(base_url=v3.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


def check(name: str, arguments: object) -> None:
    jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("seed", SEEDS)
def test_chat(client, model, seed):
    given = dict(model=model, messages=ASKED, tools=CHAT, seed=seed, max_tokens=4000)
    answer = client.chat.completions.create(**given, tool_choice="required").choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None and answer.message.tool_calls
    for call in answer.message.tool_calls:
        check(call.function.name, json.loads(call.function.arguments))
    named = {"type": "function", "function": {"name": "now"}}
    one = client.chat.completions.create(**given, tool_choice=named, parallel_tool_calls=False).choices[0].message
    assert [(c.function.name, c.function.arguments) for c in one.tool_calls] == [("now", "{}")]
    chunks = list(client.chat.completions.create(**given, tool_choice="required", stream=True))
    said = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert [(c.id, c.function.arguments) for c in said] == [
        (c.id, c.function.arguments) for c in answer.message.tool_calls
    ]
    assert all(not c.choices[0].delta.content for c in chunks) and chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", SEEDS)
def test_responses(client, model, seed):
    given = dict(model=model, input="hi", tools=RESPONSES, tool_choice="required", extra_body={"seed": seed})
    answer = client.responses.create(**given, max_output_tokens=4000)
    assert answer.status == "completed" and answer.output and answer.output_text == ""
    for item in answer.output:
        assert item.type == "function_call" and item.status == "completed"
        check(item.name, json.loads(item.arguments))
    events = list(client.responses.create(**given, max_output_tokens=4000, stream=True))
    kinds = [e.type.removeprefix("response.") for e in events]
    each = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert kinds == ["created", "in_progress", *each * len(answer.output), "completed"]
    assert [(i.call_id, i.arguments) for i in events[-1].response.output] == [
        (i.call_id, i.arguments) for i in answer.output
    ]
    with client.responses.stream(**given, max_output_tokens=4000) as stream:
        assert [i.arguments for i in stream.get_final_response().output] == [i.arguments for i in answer.output]
    results = [{"type": "function_call_output", "call_id": i.call_id, "output": "7"} for i in answer.output]
    for more in ({"previous_response_id": answer.id, "input": results}, {"input": [*ASKED, *answer.output, *results]}):
        after = client.responses.create(model=model, tools=RESPONSES, max_output_tokens=1, **more)
        assert after.usage.input_tokens > answer.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="no result"):  # a call without its result
        client.responses.create(
            model=model, input=[*ASKED, *answer.output, {"role": "assistant", "content": "x"}, *ASKED]
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_messages(claude, model, seed):
    given = dict(model=model, messages=ASKED, tools=ANTHROPIC, max_tokens=4000, extra_body={"seed": seed})
    answer = claude.messages.create(**given, tool_choice={"type": "any"})
    assert answer.stop_reason == "tool_use" and answer.content
    for block in answer.content:
        assert block.type == "tool_use"
        check(block.name, block.input)
    with claude.messages.stream(**given, tool_choice={"type": "any"}) as stream:
        assert [(b.id, b.input) for b in stream.get_final_message().content] == [
            (b.id, b.input) for b in answer.content
        ]
    one = claude.messages.create(
        **given, tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    )
    assert [b.name for b in one.content] == ["weather"]
    results = [{"type": "tool_result", "tool_use_id": b.id, "content": "7"} for b in answer.content]
    asked = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    count = claude.messages.count_tokens(model=model, messages=asked, tools=ANTHROPIC).input_tokens
    usage = claude.messages.create(model=model, messages=asked, tools=ANTHROPIC, max_tokens=1).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == count


def test_cut_off_it_is_no_call(client, claude, model):
    """A call that max_tokens cuts off cannot be read: it is text, and the reason says length."""
    answer = client.chat.completions.create(
        model=model, messages=ASKED, tools=CHAT, tool_choice="required", max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.tool_calls is None
    response = client.responses.create(
        model=model, input="hi", tools=RESPONSES, tool_choice="required", max_output_tokens=5
    )
    assert response.status == "incomplete" and [i.type for i in response.output] == ["message"]
    message = claude.messages.create(
        model=model, messages=ASKED, tools=ANTHROPIC, tool_choice={"type": "any"}, max_tokens=5
    )
    assert message.stop_reason == "max_tokens"


def test_a_guest_that_writes_as_hermes_does(tmp_path):
    """A template of somebody else's that says <tool_call>: offered, demanded, read, and read again."""
    config = tiny_config(vocab_size=320, context=8192)
    path = write_tiny_gguf(
        tmp_path / "guest.gguf", config, tiny_weights(config, 5), **{"tokenizer.chat_template": HERMES}
    )
    server = Server(str(path), "--slots", "2")
    try:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            given = dict(model="guest", messages=ASKED, tools=CHAT, tool_choice="required", max_tokens=4000, seed=1)
            said = client.chat.completions.create(**given).choices[0]
            assert said.finish_reason == "tool_calls" and said.message.content is None
            for call in said.message.tool_calls:
                check(call.function.name, json.loads(call.function.arguments))
            chunks = list(client.chat.completions.create(**given, stream=True))
            assert all(not c.choices[0].delta.content for c in chunks)
            results = [{"role": "tool", "tool_call_id": c.id, "content": "7"} for c in said.message.tool_calls]
            after = {**given, "messages": [*ASKED, said.message, *results], "tool_choice": "auto", "max_tokens": 1}
            assert client.chat.completions.create(**after).usage.prompt_tokens > 100
    finally:
        server.close()


def test_no_tools_where_the_format_has_none(server):
    body = {"messages": ASKED, "tools": CHAT, "max_tokens": 1}
    for choice in ("auto", "required"):
        answer = httpx.post(server.url + "/v1/chat/completions", json={**body, "tool_choice": choice})
        assert answer.status_code == 400 and "v1 has no tools" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tool_choice": "required", "tools": []}, "no tool"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "'other'"),
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "both"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b\n', "parameters": {}}}], "tool_choice": "required"}, "a"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"}, "'not'"),
        ({"tools": CHAT * 500}, "tools"),
    ],
)  # fmt: skip
def test_refused(v3, body, said):
    given = {"messages": ASKED, "tools": CHAT, "max_tokens": 1, **body}
    answer = httpx.post(v3.url + "/v1/chat/completions", json=given)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text


def test_a_tool_that_cannot_be_promised_may_still_be_offered(v3):
    """With "auto" nothing is forced, so its schema is the model's affair alone."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]
    answer = httpx.post(v3.url + "/v1/chat/completions", json={"messages": ASKED, "tools": tools, "max_tokens": 1})
    assert answer.status_code == 200
