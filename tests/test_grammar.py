"""Masks: regexes and grammars, the first token of a reply, hostile grammars, the sampler, forced calls of tools."""

import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from bise import grammar
from bise.api import BUILT_IN
from bise.cache import Cache
from bise.chat import ChatFormat
from bise.engine import Engine, Request
from bise.errors import RequestError
from bise.ops import load_ops
from bise.sampler import Sampler, Sampling
from bise.tokenizer import Tokenizer
from bise.weights import Weights
from tiny import tiny_config, tiny_v3_vocabulary, tiny_vocabulary, tiny_weights, write_tiny_gguf
from walks import fits, mistral, puff, ready

# --- regexes and grammars


def test_regex() -> None:
    text = grammar.regex(r'[0-9]{2}/"(yes|no)"')
    assert fits(text, '12/"yes"') and not fits(text, '12/"maybe"') and not fits(text, '123/"no"')
    match = ready(mistral()).match(text)
    for i in mistral().encode('12/"no"'):
        assert not match.stopped
        match.accept(i)
    assert match.stopped and match.may_end
    assert np.flatnonzero(match.allowed()).tolist() == [mistral().eos]


def test_lark() -> None:
    text = grammar.lark('start: sum\nsum: sum "+" NUMBER | NUMBER\nNUMBER: /[0-9]+/')
    assert fits(text, "1+22+3") and not fits(text, "1+") and not fits(text, "1-2")


def test_regex_of_a_text_that_begins_with_a_space() -> None:
    """The first token loses one space, as it does for people: two of them in the ids are one in the text."""
    text = grammar.regex(" ?x")
    for said in ("x", " x"):
        assert mistral().decode(mistral().encode(said)) == said and fits(text, said)
    assert not fits(text, "  x")


def test_a_text_that_goes_on_keeps_its_first_space() -> None:
    ids = mistral().encode("x")
    assert mistral().name(ids[0]) == "▁x"
    spaced, bare = (ready(mistral()).match(grammar.regex(r), start=False).allowed() for r in (" x", "x"))
    assert spaced[ids[0]] and not bare[ids[0]]


def test_the_empty_text() -> None:
    match = ready(mistral()).match(grammar.regex("a*"))
    assert match.may_end and match.allowed()[mistral().eos] and not match.stopped


def test_every_way_to_cut_a_text_may_be_taken() -> None:
    match = ready(mistral()).match(grammar.regex("hello"))
    first = {mistral().name(int(i)) for i in np.flatnonzero(match.allowed())}
    assert {"▁hell", "hello", "▁hel", "▁h", "h", "<0x68>", "▁"} <= first


@pytest.mark.parametrize("tokenizer", [puff, mistral])
def test_masks_agree_with_the_text_that_people_get(tokenizer: Any) -> None:
    """Against Python's re, token for token: a token may be first exactly if its text can begin a match."""
    words = ["yes", "no", " maybe", "never"]
    allowed = ready(tokenizer()).match(grammar.regex("|".join(words))).allowed()
    for i in range(tokenizer().vocab_size):
        said = tokenizer().piece(i).decode(errors="replace")
        said = said.removeprefix(" ") if tokenizer().vocab.space_prefix else said
        wanted = any(w.startswith(said) for w in words) and not tokenizer().is_control(i) and bool(tokenizer().piece(i))
        assert allowed[i] == wanted, (i, tokenizer().name(i))


HOSTILE = {
    "unclosed": (grammar.regex, "("),
    "long": (grammar.regex, "a" * 10**6),
    "parentheses": (grammar.regex, "(" * 8000 + ")" * 8000),
    "look-around": (grammar.regex, "(?=a)b"),
    "back-reference": (grammar.regex, r"(a)\1"),
    "nothing": (grammar.regex, r"[^\s\S]"),
    "large lexer": (grammar.regex, "|".join(rf"\w{{{i}}}x" for i in range(1000, 3000))),
    "undefined rule": (grammar.lark, "start: nobody"),
    "no start": (grammar.lark, 'begin: "a"'),
    "endless left recursion": (grammar.lark, 'start: start "a"'),
    "nested": (grammar.lark, "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "long grammar": (grammar.lark, "start: " + '"a" ' * 50_000),
    "file": (grammar.lark, "%import ./etc.passwd\nstart: passwd"),
    "schema within": (grammar.lark, 'start: %json {"$ref": "http://127.0.0.1/"}'),
    "not Lark": (grammar.lark, "\x00\ud7ff}{"),
    "large schema": (grammar.json_schema, {"properties": {f"p{i}": {} for i in range(100_000)}}),
    "optional": (grammar.json_schema, {"properties": {f"p{i}": {} for i in range(500)}}),
    "branches": (grammar.json_schema, {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"type": "integer"}}}, {"properties": {f"b{i}": {"type": "string"}}}]} for i in range(20)]}),
    "multiples": (grammar.json_schema, {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949)]}),
    "pattern": (grammar.json_schema, {"type": "string", "pattern": "(?!a)b"}),
    "overlapping oneOf": (grammar.json_schema, {"oneOf": [{"type": "integer"}, {"minimum": 2}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_within_a_second(name: str) -> None:
    write, given = HOSTILE[name]
    began = time.thread_time()
    with pytest.raises(RequestError) as refusal:
        ready(mistral()).match(write(given))  # type: ignore[operator]
    assert time.thread_time() - began < 1
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "rules",
    ['start: s\ns: s s | "a" | "a" "a"', 'start: s\ns: s s s | s s | /a*b?/ | ""', r"start: /\p{L}{1,500}\w{500}/"],
)
def test_a_costly_grammar_ends_in_an_error_and_not_in_a_standstill(rules: str) -> None:
    match, rng = ready(mistral()).match(grammar.lark(rules)), np.random.default_rng(0)
    began = time.thread_time()
    with pytest.raises(RequestError, match="the grammar: "):
        for _ in range(500):
            step = time.thread_time()
            allowed = match.allowed()
            assert time.thread_time() - step < 1
            match.accept(int(rng.choice(np.flatnonzero(allowed & (np.arange(len(allowed)) != mistral().eos)))))
    assert time.thread_time() - began < 20


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "((a{0,50}b){0,50}c){0,50}", ".*a.{30}"])
def test_regexes_that_are_slow_elsewhere(pattern: str) -> None:
    """Derivatives do not backtrack: a mask takes the same time after 500 letters."""
    match, a = ready(mistral()).match(grammar.regex(pattern)), mistral().encode("ba")[-1]
    began = time.thread_time()
    for _ in range(500):
        if not match.allowed()[a]:
            break
        match.accept(a)
    assert time.thread_time() - began < 2


def test_a_token_that_may_not_come_is_refused() -> None:
    match = ready(mistral()).match(grammar.regex("yes"))
    with pytest.raises(RequestError):
        match.accept(mistral().encode("no")[0])


def test_memory_stays_flat() -> None:
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def compile(i: int) -> None:
        schema = {"type": "object", "properties": {f"name{i}": {"type": "string", "pattern": f"^a{i}+$"}}}
        ready(mistral()).match(grammar.json_schema(schema))

    for i in range(200):
        compile(i)
    before = pages()
    for i in range(1000):
        compile(-i)
    assert (pages() - before) * 4096 < 4 << 20


# --- sampling


def test_sampler_keeps_to_the_grammar() -> None:
    tokenizer, rng = mistral(), np.random.default_rng(5)
    schema = {"type": "array", "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "boolean"}], "items": False, "minItems": 2}  # fmt: skip
    for settings in (
        Sampling(temperature=1.5, seed=1),
        Sampling(temperature=2, top_k=40, min_p=0.01, seed=2),
        Sampling(),
    ):
        match = ready(tokenizer).match(grammar.json_schema(schema))
        sampler, ids = Sampler(settings, tokenizer.vocab_size, match), []
        while True:
            logits = rng.standard_normal(tokenizer.vocab_size).astype(np.float32)
            token, logprob = sampler.sample(logits)
            shifted = logits.astype(np.float64)
            assert logprob == pytest.approx(
                shifted[token] - np.log(np.exp(shifted).sum()), abs=1e-9
            )  # of the raw logits
            if token == tokenizer.eos:
                break
            ids.append(token)
        jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)


def test_banned_by_both_is_an_error_of_the_request() -> None:
    tokenizer = mistral()
    match = ready(tokenizer).match(grammar.regex("[0-9]"))
    bans = {i: float("-inf") for i in np.flatnonzero(match.allowed()).tolist()}
    with pytest.raises(Exception, match="no token is left"):
        Sampler(Sampling(logit_bias=bans), tokenizer.vocab_size, match).sample(
            np.zeros(tokenizer.vocab_size, np.float32)
        )


TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip


HERMES = """{% if tools %}<|im_start|>system
{{ tools | tojson }} <tool_call></tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>
{{ c.function | tojson }}
</tool_call>
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def format_of(kind: str, tokenizer: Tokenizer) -> ChatFormat:
    found = ChatFormat.named("v3", tokenizer) if kind == "v3" else ChatFormat.detect(tokenizer, HERMES)
    assert found
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["v3", "hermes", "hermes with control tokens"])
def test_a_random_model_calls_tools_as_it_must(tmp_path: Path, kind: str, seed: int) -> None:
    """A model that knows nothing, forced to call: what comes parses, and its arguments validate."""
    config = tiny_config(vocab_size=320, context=4096)
    keys = tiny_v3_vocabulary(320) if kind == "v3" else tiny_vocabulary(320)
    if "control" in kind:
        for at, name in enumerate(("<tool_call>", "</tool_call>")):
            keys["tokenizer.ggml.tokens"][310 + at], keys["tokenizer.ggml.token_type"][310 + at] = name, 4
    weights = Weights.open(write_tiny_gguf(tmp_path / "m.gguf", config, tiny_weights(config, seed), **keys))
    tokenizer = Tokenizer.of(weights)
    assert tokenizer and ("<tool_call>" in tokenizer.control) == ("control" in kind)
    chat, ops = format_of(kind, tokenizer), load_ops("cpu")
    text = grammar.calls(TOOLS, chat, most=3)
    sampler = Sampler(Sampling(temperature=1, seed=seed), tokenizer.vocab_size, ready(tokenizer).match(text))
    request = Request(chat.encode([{"role": "user", "content": "hi"}], TOOLS), sampler, 2000, tokenizer.stop_ids)
    engine = Engine(ops, config, weights.place(ops), Cache(ops, config, 1, 4096))
    engine.submit(request)
    while engine.running:
        engine.step()
    assert request.finish_reason == "stop", tokenizer.decode(request.tokens)
    said, found = chat.parse_calls(request.tokens)
    assert said == "" and 1 <= len(found) <= 3
    parameters = {t["function"]["name"]: t["function"].get("parameters", {"maxProperties": 0}) for t in TOOLS}
    for call in found:
        jsonschema.validate(json.loads(call["function"]["arguments"]), parameters[call["function"]["name"]])
        assert re.fullmatch("[a-zA-Z0-9]{9}", call["id"])
    assert len({call["id"] for call in found}) == len(found)


def test_calls_as_mistral_writes_them() -> None:
    tokenizer = mistral()
    said = {"role": "assistant", "tool_calls": [{"id": "abcdefgh1", "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "unit": "C"}'}}, {"id": "abcdefgh2", "function": {"name": "now", "arguments": "{}"}}]}  # fmt: skip
    messages = [{"role": "user", "content": "hi"}]
    chat = ChatFormat.named("v3", tokenizer)
    whole, prompt = chat.encode([*messages, {**said, "prefix": True}], TOOLS), chat.encode(messages, TOOLS)
    ids = whole[len(prompt) :]
    assert whole[: len(prompt)] == prompt and ids[0] == tokenizer.control["[TOOL_CALLS]"]
    for most, fit in ((16, True), (1, False)):
        match = ready(tokenizer).match(grammar.calls(TOOLS, chat, most))
        allowed = []
        for i in ids:
            allowed.append(bool(match.allowed()[i]))
            if not allowed[-1]:
                break
            match.accept(i)
        assert all(allowed) == fit
    assert match.may_end is False


def test_calls_that_cannot_be_demanded() -> None:
    v3 = ChatFormat.named("v3", mistral())
    for chat in (ChatFormat.named("v1", puff()), ChatFormat(puff(), 0, "{% for m in messages %}...{% endfor %}")):
        with pytest.raises(RequestError, match="has none that are known"):
            grammar.calls(TOOLS, chat)
    with pytest.raises(RequestError, match="no tool"):
        grammar.calls([], v3)
    bad = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"not": {}}}}}}]
    with pytest.raises(RequestError, match="tool f: .*'not'"):
        grammar.calls(bad, v3)


def test_guesses_read_ahead_change_nothing() -> None:
    """Greedy under a grammar that repeats itself: with and without prompt lookup the ids are the same, in fewer steps."""
    weights, ops = Weights.open(BUILT_IN), load_ops("cpu", 1)
    placed, said = weights.place(ops), []
    text = grammar.regex(r"((the cat sat on the mat|a dog ran)\. ){12}")
    for lookup in (False, True):
        match = ready(puff()).match(text)
        prompt = puff().encode("the cat sat on the mat. the cat sat on the mat. ", bos=True)
        request = Request(prompt, Sampler(Sampling(), puff().vocab_size, match), 300, puff().stop_ids)
        engine = Engine(ops, weights.config, placed, Cache(ops, weights.config, 1, 512), lookup=lookup)
        engine.submit(request)
        steps = 0
        while engine.running:
            engine.step()
            steps += 1
        said.append((request.tokens, request.finish_reason, steps))
    (plain, finish, slow), (guessed, _, fast) = said
    assert plain == guessed and finish == "stop" and fast < slow
    assert re.fullmatch(r"((the cat sat on the mat|a dog ran)\. ){12}", puff().decode(plain))
