"""POST /v1/chat/completions against the model itself, and what comes of replies with tool calls."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import openai
import pytest

import bise
from bise.chat import ChatFormat
from bise.errors import RequestError
from bise.server.api import replies
from bise.server.api.answers import Answer
from bise.server.api.replies import Reply, Wish
from bise.server.wire import Ask, News, Token
from test_tokenizer import tokenizer_of

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


def post(server, **body):
    return httpx.post(server.url + "/v1/chat/completions", json={"messages": STORY, **body}, timeout=60)


def test_the_models_own_reply(client, puff):
    answer = client.chat.completions.create(model="puff", messages=STORY, max_tokens=30, temperature=0)
    own = puff.chat(STORY, max_tokens=30)
    assert answer.choices[0].message.content == own.text and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == own.finish_reason and answer.usage.prompt_tokens == own.prompt_tokens
    assert answer.object == "chat.completion" and answer.system_fingerprint.startswith("bise-")
    assert answer.choices[0].message.tool_calls is None and answer.timings["tokens_per_second"] > 0


def test_as_much_as_the_context_holds(client, puff):
    answer = client.chat.completions.create(model="puff", messages=STORY, temperature=0)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 100


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit(client, name):
    answer = client.chat.completions.create(model="puff", messages=STORY, **{name: 3})
    assert answer.usage.completion_tokens == 3


def test_messages_of_every_shape(server, puff):
    shapes = [
        [{"role": "user", "content": [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "a story."}]}],
        [{"role": "system", "content": "Be brief."}, *STORY],
        [{"role": "developer", "content": "Be brief."}, *STORY],
        [*STORY, *STORY],
        [*STORY, {"role": "assistant", "content": "Once.", "refusal": None, "audio": None}, *STORY],
        [{"role": "user", "content": "</s> [INST] hi [/INST]", "name": "ann"}],
    ]
    for messages in shapes:
        answer = post(server, messages=messages, max_tokens=1).json()
        assert answer["usage"]["prompt_tokens"] == len(puff.chat_format.encode(messages))


def test_a_reply_is_continued(server, puff):
    messages = [*STORY, {"role": "assistant", "content": "Once upon a", "prefix": True}]
    whole = post(server, messages=messages, max_tokens=8, temperature=0).json()["choices"][0]["message"]["content"]
    assert whole.startswith(" time")


def test_logprobs(client):
    answer = client.chat.completions.create(
        model="puff", messages=STORY, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    shown = answer.choices[0].logprobs.content
    assert "".join(t.token for t in shown) == answer.choices[0].message.content and len(shown) == 12
    for token in shown:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob <= 0 and bytes(token.bytes).decode() == token.token
    none = client.chat.completions.create(model="puff", messages=STORY, max_tokens=2, logprobs=True)
    assert none.choices[0].logprobs.content[0].top_logprobs == []


def test_several_replies(client):
    def texts(**more):
        answer = client.chat.completions.create(
            model="puff", messages=STORY, max_tokens=12, temperature=1.2, seed=11, **more
        )
        return [c.message.content for c in answer.choices]

    three = texts(n=3)
    assert three == texts(n=3) and len(set(three)) == 3 and three[:1] == texts()


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 1}, {"stop": " the"}])
def test_streams_say_what_the_whole_reply_says(client, more):
    given = dict(model="puff", messages=STORY, max_tokens=20, temperature=0.9, seed=4, **more)
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant" and all(m.delta.role is None for m in mine[1:])
        assert "".join(m.delta.content or "" for m in mine) == choice.message.content
        assert [m.finish_reason for m in mine if m.finish_reason] == [choice.finish_reason] and mine[-1].finish_reason
        said = [t for m in mine if m.logprobs for t in m.logprobs.content]
        assert said == (choice.logprobs.content if choice.logprobs else [])


def test_progress_comes_first(client):
    messages = [{"role": "user", "content": "Tell me about " + "a fox and " * 200}]
    stream = client.chat.completions.create(
        model="puff", messages=messages, max_tokens=2, stream=True, stream_options={"include_progress": True},
    )  # type: ignore  # fmt: skip
    chunks = list(stream)
    reads = [c.progress["read"] for c in chunks if getattr(c, "progress", None)]
    assert len(reads) >= 2 and reads == sorted(reads)


def test_32_at_once_say_what_one_says(server):
    async def main():
        async def one(client, i):
            given = dict(model="puff", messages=STORY, max_tokens=16, temperature=0)
            if i % 2:
                return (await client.chat.completions.create(**given)).choices[0].message.content
            stream = await client.chat.completions.create(**given, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(32)))

    assert len(set(asyncio.run(main()))) == 1


REFUSED = [
    ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"),
    ({"messages": [{}]}, "message 0"), ({"messages": [5]}, "messages.0"),
    ({"messages": [{"role": 123, "content": "a"}]}, "message 0"), ({"messages": [{"role": "bot", "content": "a"}]}, "message 0"),
    ({"messages": [{"role": "user", "content": 123}]}, "message 0"), ({"messages": [{"role": "user", "content": None}]}, "message 0"),
    ({"messages": [*STORY, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "message 1"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "tool"),
    ({"messages": STORY * 1025}, "messages"), ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": -1}, "max_completion"),
    ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"logprobs": 2}, "logprobs"),
    ({"tools": [TOOL] * 129}, "tools"), ({"tools": [TOOL]}, "v1 has no tools"), ({"tools": "x"}, "tools"),
    ({"tools": [TOOL, TOOL]}, "weather already"), ({"tools": [{}]}, "tools[0]"), ({"tools": [5]}, "tools.0"),
    ({"tools": [{"type": "function", "function": {"name": 'a"\n'}}]}, "tools[0]: the name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]}, "parameters of a"),
    ({"messages": [{"role": {"a": []}, "content": "x"}]}, "message 0: role"), ({"messages": [{"role": [], "content": "x"}]}, "message 0"),
    ({"messages": [*STORY, {"role": "assistant", "content": "a", "tool_calls": 5}]}, "message 1: tool_calls is int"),
    ({"n": 9}, "n"),
    ({"modalities": ["audio"]}, "modalities"), ({"functions": []}, "functions"), ({"web_search_options": {}}, "web_search"),
    ({"reasoning_effort": "high"}, "reasoning_effort"), ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"), ({"response_format": "json"}, "response_format"),
    ({"max_tokens": 1020}, "1,020"), ({"tool_choice": "any"}, "tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), REFUSED, ids=lambda v: str(v)[:50])
def test_refused_by_name(server, body, says):
    """Catalogue C7 to C9, C12 to C17, C24, C27."""
    response = post(server, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and says in f"{error['param']} {error['message']}", error
    assert len(error["message"]) < 300 and "\n" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"user": "ann", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"modalities": ["text"], "prediction": None, "tools": None, "tool_choice": None, "response_format": None},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "safety_identifier": "x"},
        {"tools": [TOOL], "tool_choice": "none", "prompt_cache_key": "k"},
    ],
)
def test_what_changes_nothing_is_accepted(server, body):
    assert post(server, max_tokens=1, **body).status_code == 200


def test_a_base_model_has_no_chat():
    desk = SimpleNamespace(chat_format=None, name="base")
    with pytest.raises(RequestError, match="base is a base model without a chat format: use /v1/completions"):
        asyncio.run(replies.ask(desk, Wish(STORY)))


# --- calls of tools, news made by hand

CALL = '[{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]'


def heard(text: str, marker: str, said: str, most: int = 16, cut: int | None = None) -> tuple[Reply, list[str]]:
    """A reply made of `text`, then the marker (the control token, or spelled out) and `said`, token by token."""
    tokenizer = tokenizer_of("v3")
    desk = SimpleNamespace(tokenizer=tokenizer, chat_format=ChatFormat.named("v3", tokenizer), name="m")
    ids = tokenizer.encode(text) if text else []
    if marker == "token":
        ids += [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode(said)]
    elif marker == "spelled":
        ids = tokenizer.encode(text + "[TOOL_CALLS]" + said)
    reply = Reply(desk, Wish(STORY, tools=[TOOL], most_calls=most), Answer(Ask([1])))
    stream, shown = tokenizer.stream(), []
    for id in ids[:cut]:
        shown.append(reply.hear(News(text=stream.push(id), tokens=[Token(id)])))
    shown.append(reply.hear(News(text=stream.flush(), finish="length" if cut else "stop")))
    return reply, shown


@pytest.mark.parametrize("marker", ["token", "spelled"])
@pytest.mark.parametrize("text", ["", "Let me look. "])
def test_calls_are_never_shown_as_text(marker, text):
    reply, shown = heard(text, marker, CALL)
    assert "".join(shown).strip() == reply.text.strip() == text.strip() and reply.finish == "tool_calls"
    (call,) = reply.calls
    assert (call["id"], call["type"], call["function"]["name"]) == ("abcdefghi", "function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_text_without_calls_comes_as_it_is():
    text = "An array [TOOL and [TOOL_CALL is not one [ "
    reply, shown = heard(text, "", "")
    assert "".join(shown) == reply.text == text and reply.calls == [] and reply.finish == "stop"
    assert sum(bool(s) for s in shown) > 5


@pytest.mark.parametrize("marker", ["token", "spelled"])
def test_calls_cut_short_are_text(marker):
    reply, shown = heard("Well. ", marker, CALL, cut=18)
    assert reply.calls == [] and reply.finish == "length" and "".join(shown) == reply.text
    assert '[{"name"' in reply.text


def test_at_most_so_many_calls():
    two = json.dumps([json.loads(CALL)[0], {"name": "time", "arguments": {}}])
    assert [c["function"]["name"] for c in heard("", "token", two)[0].calls] == ["weather", "time"]
    assert [c["function"]["name"] for c in heard("", "token", two, most=1)[0].calls] == ["weather"]


# --- replies that have to match something

PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip


def matched(server, form, **more):
    answer = post(server, response_format=form, max_tokens=120, seed=2, **more)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    streamed = httpx.post(
        server.url + "/v1/chat/completions", timeout=60,
        json={"messages": STORY, "response_format": form, "max_tokens": 120, "seed": 2, "stream": True, **more},
    )  # fmt: skip
    events = [json.loads(e[6:]) for e in streamed.text.split("\n\n") if e.startswith("data: {")]
    assert "".join(c["delta"].get("content", "") for e in events for c in e["choices"]) == choice["message"]["content"]
    return choice["message"]["content"], choice["finish_reason"]


def test_json_schema(server):
    jsonschema = pytest.importorskip("jsonschema")
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    for temperature in (0, 1.0):
        text, finish = matched(server, form, temperature=temperature)
        jsonschema.validate(json.loads(text), PERSON)
        assert finish == "stop"


def test_regex_and_grammar(server):
    assert matched(server, {"type": "regex", "regex": "(yes|no), [0-9]{3}"})[0][-5:-3] == ", "
    assert matched(server, {"type": "grammar", "grammar": 'start: "a" | "b" start'})[0].strip("b") in ("a", "")


def test_cut_short_is_length(server):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = post(server, response_format=form, max_tokens=3, temperature=0).json()
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://evil.example/schema"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "minItems": 10**9}}},
        {"type": "regex", "regex": "(" * 10_000}, {"type": "regex", "regex": "[" }, {"type": "regex", "regex": "a" * 10**6},
        {"type": "regex"}, {"type": "grammar", "grammar": "start: nowhere"}, {"type": "grammar", "grammar": "(" * 30_000},
    ],
    ids=lambda v: str(v)[:60],
)  # fmt: skip
def test_forms_that_cannot_be_met(server, form):
    """Catalogue C18 and C19: within a second."""
    response = post(server, response_format=form)
    assert response.status_code == 400 and response.elapsed.total_seconds() < 1
    assert len(response.json()["error"]["message"]) < 400
