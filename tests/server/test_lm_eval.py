"""lm-eval's `local-completions` against the server scores as the model does in this process."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import bise

pytest.importorskip("lm_eval")
PAIRS = [
    ("Once upon a time, there was a", " little girl named Lily."),
    ("The dog was", " very happy and ran to the park to play with his friends."),
    ("The dog was", " logarithm 日本"),
    ("", "One day, a bird sat on a tree."),
]


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


@pytest.fixture(scope="module", params=[1, 3])
def evaluator(server, request):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=server.url + "/v1/completions", model="puff", tokenizer_backend="remote", max_length=1024,
        batch_size=request.param, num_concurrent=1,
    )  # fmt: skip


def requests(pairs):
    return [SimpleNamespace(args=p, task_name="test", doc={}) for p in pairs]


def scored(model, context, continuation):
    """(sum of logprobs, greedy): tokens are split between the two as lm-eval splits them."""
    ids = model.tokenizer.encode(context + continuation)
    n = len(model.tokenizer.encode(context)) if context else 0
    if not context:
        ids, n = [model.tokenizer.bos, *ids], 1
    x = model.logits(ids).astype(np.float64)
    logprobs = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    total = sum(float(logprobs[i - 1, ids[i]]) for i in range(n, len(ids)))
    return total, all(int(x[i - 1].argmax()) == ids[i] for i in range(n, len(ids)))


def test_scores(evaluator, puff):
    found = evaluator.loglikelihood(requests(PAIRS), disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        own, own_greedy = scored(puff, context, continuation)
        assert math.isclose(total, own, rel_tol=1e-9) and greedy is own_greedy


def test_rolling(evaluator, puff):
    text = "Once upon a time, there was a little girl named Lily. " * 10
    (found,) = evaluator.loglikelihood_rolling(
        [SimpleNamespace(args=(text,), task_name="t", doc={})], disable_tqdm=True
    )
    assert math.isclose(found, scored(puff, "", text)[0], rel_tol=1e-9)


def test_generation(evaluator, puff):
    asked = [
        ("Once upon a time", {"until": [".", "\n"], "max_gen_toks": 40}),
        ("The dog", {"until": ["."], "max_gen_toks": 40}),
    ]
    found = evaluator.generate_until(requests(asked), disable_tqdm=True)
    for (context, options), text in zip(asked, found, strict=True):
        own = puff.generate(puff.tokenizer.encode(context), max_tokens=40, stop=options["until"])
        assert text == own.text
