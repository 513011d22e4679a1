"""/v1/models: one model, and what it is."""

import httpx
import openai

import bise


def test_the_one_that_is_served(server):
    puff = bise.load(threads=1)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    assert model == client.models.retrieve("puff") and (model.id, model.object, model.owned_by) == (
        "puff",
        "model",
        "bise",
    )
    assert model.bise == {
        "context": puff.context, "window": puff.config.sliding_window, "version": puff.config.version,
        "parameters": puff.config.parameters, "vocabulary": puff.vocab_size, "fingerprint": puff.weights.fingerprint,
        "chat": "Mistral v1",
    }  # fmt: skip


def test_any_other(server):
    for name in ("gpt-4", "mistralai/Mistral-7B", "x" * 500):
        response = httpx.get(f"{server.url}/v1/models/{name}")
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
