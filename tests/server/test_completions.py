"""POST /v1/completions against the model itself, through openai-python and in plain HTTP."""

import json
import math
from types import SimpleNamespace

import httpx
import openai
import pytest

import bise
from bise.server.api import completions
from bise.server.api.completions import CompletionRequest
from bise.server.faults import Fault
from test_tokenizer import tokenizer_of

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


def post(server, **body):
    return httpx.post(server.url + "/v1/completions", json=body, timeout=60)


def lines(server, **body):
    """The events of a stream, [DONE] included as None."""
    response = post(server, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [e for e in response.text.split("\n\n") if e and not e.startswith(":")]
    assert all(e.startswith("data: ") for e in events)
    return [None if e == "data: [DONE]" else json.loads(e[6:]) for e in events]


def test_the_models_own_text(client, puff):
    answer = client.completions.create(model="puff", prompt=PROMPT, max_tokens=24, temperature=0)
    own = puff.generate(PROMPT, max_tokens=24)
    assert answer.choices[0].text == own.text and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (own.prompt_tokens, 24)
    assert answer.object == "text_completion" and answer.model == "puff"
    assert answer.timings["decode_seconds"] > 0


def test_every_kind_of_prompt(client, puff):
    ids = puff.tokenizer.encode(PROMPT, bos=True)
    texts = []
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        answer = client.completions.create(model="puff", prompt=prompt, max_tokens=8, temperature=0)
        texts.append(answer.choices[0].text)
        assert answer.usage.prompt_tokens == len(ids)
    assert len(set(texts)) == 1


def test_ids_get_no_bos(client, puff):
    ids = puff.tokenizer.encode(PROMPT)
    answer = client.completions.create(model="puff", prompt=ids, max_tokens=4, temperature=0, echo=True, logprobs=0)
    assert answer.usage.prompt_tokens == len(ids) and answer.choices[0].logprobs.tokens[0] == "Once"


def test_several_prompts_and_answers(client):
    prompts = [PROMPT, "The cat", "Lily"]
    answer = client.completions.create(model="puff", prompt=prompts, n=2, max_tokens=6, temperature=0, echo=True)
    assert [c.index for c in answer.choices] == list(range(6))
    for i, choice in enumerate(answer.choices):
        assert choice.text.startswith(prompts[i // 2])
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage.prompt_tokens < 6 * 10 and answer.usage.completion_tokens == 36


def test_a_long_list_leaves_room_for_others(client, server):
    prompts = [f"{i} dogs" for i in range(64)]
    answer = client.completions.create(model="puff", prompt=prompts, n=2, max_tokens=2, temperature=0, echo=True)
    assert [c.text.split(" dogs")[0] for c in answer.choices] == [str(i // 2) for i in range(128)]


def test_seeds(client):
    def texts(seed, n=2):
        answer = client.completions.create(model="puff", prompt=PROMPT, max_tokens=12, temperature=1.5, seed=seed, n=n)
        return [c.text for c in answer.choices]

    first = texts(7)
    assert first == texts(7) and first[1] == texts(8, 1)[0] and first[0] != first[1]


def test_scores_are_the_models_own(client, puff):
    ids = puff.tokenizer.encode(PROMPT + ", there was a dog.", bos=True)
    answer = client.completions.create(model="puff", prompt=ids, max_tokens=0, echo=True, logprobs=3)
    logits = puff.logits(ids).astype("float64")
    logprobs = logits - logits.max(1, keepdims=True)
    logprobs -= __import__("numpy").log(__import__("numpy").exp(logprobs).sum(1, keepdims=True))
    shown = answer.choices[0].logprobs
    assert shown.token_logprobs[0] is None and shown.top_logprobs[0] is None
    for i, logprob in enumerate(shown.token_logprobs[1:], 1):
        assert math.isclose(logprob, logprobs[i - 1, ids[i]], abs_tol=1e-4)
        assert max(shown.top_logprobs[i].values()) == pytest.approx(logprobs[i - 1].max(), abs=1e-4)
        assert 3 <= len(shown.top_logprobs[i]) <= 4
    assert len(shown.tokens) == len(ids) and answer.choices[0].finish_reason == "length"
    text = answer.choices[0].text
    assert text == PROMPT + ", there was a dog."
    for token, offset in zip(shown.tokens[1:], shown.text_offset[1:], strict=True):
        assert text[offset:].startswith(token)


def test_as_lm_eval_sends_it(server, puff):
    """Token ids, echo, one token more: its place is there, also where the model would have ended."""
    ids = puff.tokenizer.encode("They lived happily ever after.", bos=True)
    ended = puff.generate(PROMPT, max_tokens=800)
    whole = puff.tokenizer.encode(PROMPT, bos=True) + ended.tokens
    assert ended.finish_reason == "stop"
    body = dict(prompt=[ids, whole], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True, model="puff")
    choices = post(server, **body).json()["choices"]
    for given, choice in zip([ids, whole], choices, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(given) + 1
        assert len(choice["logprobs"]["top_logprobs"]) == len(given) + 1
    assert choices[1]["finish_reason"] == "stop" and choices[1]["logprobs"]["tokens"][-1] == "</s>"
    assert sum(choices[1]["logprobs"]["token_logprobs"][5:-1]) == pytest.approx(sum(ended.logprobs), abs=1e-6)


@pytest.mark.parametrize("stop", [" there", [" zebra", " there"], "ere w", [", there"]])
def test_stop(client, server, stop):
    answer = client.completions.create(model="puff", prompt=PROMPT, max_tokens=24, temperature=0, stop=stop)
    first = stop if isinstance(stop, str) else stop[-1]
    assert answer.choices[0].finish_reason == "stop" and first not in answer.choices[0].text
    streamed = lines(server, prompt=PROMPT, max_tokens=24, temperature=0, stop=stop)
    assert "".join(e["choices"][0]["text"] for e in streamed if e) == answer.choices[0].text


def test_a_stop_string_before_all_text(client):
    answer = client.completions.create(model="puff", prompt=PROMPT, max_tokens=5, temperature=0, stop=",")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")


def test_logit_bias(client, puff):
    banned = puff.tokenizer.encode(PROMPT + ",")[-1]
    answer = client.completions.create(
        model="puff", prompt=PROMPT, max_tokens=1, temperature=0, logit_bias={str(banned): -100}
    )
    assert answer.choices[0].text != ","
    everything = {str(i): -100 for i in range(1000)}
    assert client.completions.create(model="puff", prompt=PROMPT, max_tokens=2, logit_bias=everything).choices[0].text


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 1, "n": 2}])
def test_streams_say_what_the_whole_answer_says(server, more):
    body = dict(prompt=[PROMPT, "The dog"], max_tokens=9, temperature=0.7, seed=3, model="puff", **more)
    whole, events = post(server, **body).json(), lines(server, **body, stream_options={"include_usage": True})
    assert events[-1] is None and events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] > 0
    assert all(e["usage"] is None for e in events[:-2]) and len({e["id"] for e in events[:-1]}) == 1
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events[:-2] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        for name in choice["logprobs"] or {}:
            assert [x for c in mine if c["logprobs"] for x in c["logprobs"][name]] == choice["logprobs"][name]


def test_progress(server, puff):
    long = PROMPT + " and then there was a big dog" * 100
    events = lines(server, prompt=long, max_tokens=1, stream_options={"include_progress": True})
    progress = [e["progress"] for e in events if e and "progress" in e]
    total = len(puff.tokenizer.encode(long, bos=True))
    assert len(progress) >= 2 and all(p["total"] == total for p in progress)
    assert [p["read"] for p in progress] == sorted(p["read"] for p in progress)


def test_what_was_read_is_counted(client):
    prompt = "A prompt that nobody has sent before: " + " seven brown owls" * 40
    for wanted in (False, True):
        answer = client.completions.create(model="puff", prompt=prompt, max_tokens=1, temperature=0)
        assert (answer.usage.prompt_tokens_details.cached_tokens > 100) is wanted
    salted = client.completions.create(model="puff", prompt=prompt, max_tokens=1, extra_body={"cache_salt": "mine"})
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_every_setting_of_the_sampler(server):
    settings = dict(
        temperature=0.8, top_k=40, top_p=0.9, min_p=0.05, typical_p=0.95, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.1, penalty_window=32, dry_multiplier=0.8, dry_base=1.75, dry_allowed_length=2, dry_window=-1,
        dry_breakers=["\n", "."], xtc_probability=0.1, xtc_threshold=0.1, mirostat_tau=0.0, mirostat_eta=0.1, seed=5,
        ignore_eos=True,
    )  # fmt: skip
    answers = [post(server, prompt=PROMPT, max_tokens=8, **settings) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 200]
    assert answers[0].json()["choices"] == answers[1].json()["choices"]
    nothing = dict.fromkeys(settings)
    assert post(server, prompt=PROMPT, max_tokens=None, stop=None, n=None, logprobs=None, **nothing).status_code == 200


REFUSED = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"), ({"prompt": 5}, "prompt"), ({"prompt": {}}, "prompt"), ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"), ({"prompt": [-1]}, "prompt"), ({"prompt": [3072]}, "prompt"),
    ({"prompt": [1 << 31]}, "prompt"), ({"prompt": [1.0]}, "prompt"), ({"prompt": [True]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"), ({"prompt": ["a", 1]}, "prompt[1]"), ({"prompt": ["a", [1]]}, "prompt[1]"),
    ({"prompt": [[1], [1, False]]}, "prompt[1]"), ({"prompt": ["a"] * 65}, "prompt"), ({"prompt": ["a"] * 10**5}, "prompt"),
    ({"n": 0}, "n"), ({"n": 9}, "n"), ({"n": 10**9}, "n"), ({"n": 1.0}, "n"), ({"best_of": 2}, "best_of"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1 << 63}, "max_tokens"), ({"max_tokens": "10"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -1}, "temperature"), ({"temperature": 101}, "temperature"), ({"temperature": "0"}, "temperature"),
    ({"top_p": 2}, "top_p"), ({"top_p": -0.1}, "top_p"), ({"top_k": -5}, "top_k"), ({"top_k": 1 << 32}, "top_k"),
    ({"min_p": 1.1}, "min_p"), ({"presence_penalty": 1e9}, "presence_penalty"), ({"seed": 1 << 64}, "seed"),
    ({"seed": -1}, "seed"), ({"frequency_penalty": -1e9}, "frequency_penalty"),
    ({"logit_bias": {"abc": 1}}, "logit_bias.abc.[key]"), ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
    ({"logit_bias": {"40000": 1}}, None), ({"logit_bias": {"1": 1e308}}, "logit_bias.1"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"), ({"logit_bias": [1]}, "logit_bias"),
    ({"stop": ""}, "stop"), ({"stop": [""]}, "stop"), ({"stop": ["a"] * 17}, "stop"), ({"stop": "a" * 201}, "stop"),
    ({"stop": 5}, "stop"), ({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"echo": 1}, "echo"),
    ({"suffix": "x"}, "suffix"), ({"stream": "yes"}, "stream"), ({"stream_options": {"x": 1}}, "stream_options.x"),
    ({"nonsense": 1}, "nonsense"), ({"user": "u" * 300}, "user"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_by_name(server, body, param):
    """Catalogue C11 to C17 and C24: decided before any work, in one line that names the field."""
    if body and "prompt" not in body:
        body = {"prompt": "a", **body}
    response = post(server, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    found = error["param"] or ""
    assert found.startswith(param or ""), error
    assert 10 < len(error["message"]) < 300 and "\n" not in error["message"]


def test_too_long(server, puff):
    """Catalogue C10: both numbers, before anything is read."""
    for body in ({"prompt": PROMPT, "max_tokens": 1020}, {"prompt": "a b c " * 1000, "max_tokens": 1}):
        error = post(server, **body).json()["error"]
        assert error["code"] == "context_length_exceeded" and "1,024" in error["message"]


def test_a_megabyte_without_spaces(server):
    response = post(server, prompt="x" * 1_000_000, max_tokens=1)
    assert response.status_code == 400 and response.elapsed.total_seconds() < 1
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ["gpt-4", "../../etc/passwd", "n" * 250])
def test_unknown_models(server, name):
    response = post(server, prompt="a", model=name)
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert post(server, prompt="a", model="n" * 10_000).status_code == 400


@pytest.mark.parametrize(
    "prompt", ["</s>", "[INST] hi [/INST]", "<s>", "<unk>", "\x00", "\u200b\u202e", "🇫🇷 日本", " "]
)
def test_odd_texts_are_texts(server, puff, prompt):
    """Catalogue C22: nobody can spell a control token."""
    answer = post(server, prompt=prompt, max_tokens=0, echo=True, logprobs=0).json()
    ids = puff.tokenizer.encode(prompt, bos=True)
    assert answer["choices"][0]["text"] == prompt and answer["usage"]["prompt_tokens"] == len(ids)
    assert puff.tokenizer.eos not in ids


@pytest.mark.parametrize("seed", range(4))
def test_characters_made_of_bytes_are_never_broken(server, seed):
    """Catalogue C23: so hot that most tokens are single bytes; the stream says what the whole answer says."""
    body = dict(prompt=PROMPT, max_tokens=60, temperature=50, seed=seed, logprobs=0, ignore_eos=True)
    choice = post(server, **body).json()["choices"][0]
    streamed = [e["choices"][0]["text"] for e in lines(server, **body) if e]
    assert "".join(streamed) == choice["text"] and len(choice["logprobs"]["tokens"]) == 60


def test_an_empty_prompt_is_a_bos(server):
    answer = post(server, prompt="", max_tokens=4, temperature=0)
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == 1


def test_the_middle_as_mistral_common_writes_it():
    from mistral_common.tokens.tokenizers.instruct import FIMRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    desk = SimpleNamespace(tokenizer=tokenizer_of("v3"), name="codestral")
    theirs = MistralTokenizer.v3()
    for prompt, suffix in [("def f(", "return x"), ("a = ", "  b\n"), ("", "x"), ("def 日本(", "\n\n🇫🇷"), ("x", "")]:
        request = FIMRequest(prompt=prompt, suffix=suffix)
        assert completions._around(desk, prompt, suffix) == theirs.encode_fim(request).tokens
    for version in ("v1", "v2"):
        with pytest.raises(Fault, match="SUFFIX"):
            completions._around(SimpleNamespace(tokenizer=tokenizer_of(version), name="m"), "a", "b")
    with pytest.raises(Fault, match="token ids"):
        completions._around(desk, [1], "b")


def test_the_documented_defaults():
    body = CompletionRequest(prompt="x")
    assert (body.max_tokens, body.temperature, body.choices, body.stops) == (16, 1.0, 1, [])
