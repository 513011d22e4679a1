"""lm-evaluation-harness through /v1/completions gives the very scores of the same model in this process.

Tasks are made here from benchmark questions in ../shared/data: nothing is fetched.
"""

from __future__ import annotations

import bz2
import gzip
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

import bise
from server.careless import swept  # noqa: F401
from server.running import Server

# Nothing is fetched here: these libraries read that when they are imported. The hub's own is imported before: other tests
# have a hub of theirs.
with warnings.catch_warnings(), pytest.MonkeyPatch.context() as settings:
    warnings.simplefilter("ignore")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        settings.setenv(name, "1")
    settings.setenv("TOKENIZERS_PARALLELISM", "false")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("offline")]
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "choices",
          "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}  # fmt: skip
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
           "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]}  # fmt: skip
GENERATE = {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": [".\n", "Lily"], "max_gen_toks": 40, "temperature": 0}}  # fmt: skip
MOST = 1024  # tokens: the context. lm-eval keeps one for the answer, and one more in a rolling window


class InProcess(TemplateLM):  # type: ignore[misc]
    """The model as `bise.load` gives it, by its logits alone."""

    def __init__(self, model: bise.Model) -> None:
        super().__init__()
        self.model = model

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos  # type: ignore[return-value]

    @cached_property
    def prefix_token_id(self) -> int:
        return self.model.tokenizer.bos  # type: ignore[return-value]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return [self._score(context, said) for _, context, said in requests]

    def _score(self, context: list[int], said: list[int]) -> tuple[float, bool]:
        logits = self.model.logits([*context, *said])[len(context) - 1 : -1].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        rows = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        picked = rows[np.arange(len(said)), said]
        return float(picked.sum()), bool((picked == rows.max(-1)).all())

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        return [self._rolled(r.args[0]) for r in requests]

    def _rolled(self, text: str) -> float:
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, MOST - 2, 1)
        return sum(self._score(*make_disjoint_window(window))[0] for window in windows)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._continue(r.args[0], r.args[1]) for r in requests]

    def _continue(self, prompt: str, options: dict[str, Any]) -> str:
        stop = [*options["until"], self.model.tokenizer.name(self.eot_token_id)]
        ids = self.model.tokenizer.encode(prompt)
        return self.model.generate(ids, max_tokens=options["max_gen_toks"], temperature=0, stop=stop).text


def hellaswag(shared: Path, count: int) -> list[dict[str, Any]]:
    """Six lines a question: its beginning, the right one's number, four endings."""
    text = bz2.decompress((shared / "data/hellaswag/hellaswag_val.first2000.txt.bz2").read_bytes()).decode()
    lines = text.splitlines()[: 6 * count]
    return [
        {"query": lines[i], "label": int(lines[i + 1]), "choices": [f" {end}" for end in lines[i + 2 : i + 6]]}
        for i in range(0, len(lines), 6)
    ]


def piqa(shared: Path, count: int) -> list[dict[str, Any]]:
    lines = gzip.decompress((shared / "data/validation_halves/piqa.jsonl.gz").read_bytes()).splitlines()
    rows = map(json.loads, lines[:count])
    return [{"query": r["goal"], "label": r["label"], "choices": [f" {r['sol1']}", f" {r['sol2']}"]} for r in rows]


STORIES = [
    {"text": text} for text in (
        "Once upon a time there was a little fox who lived in a wood. Every day he went to the river to drink.",
        "The sun was hot, and the dog wanted to swim.", "“Où est le café ?” — 日本語 🦊", "One day,",
        " ".join(["The cat sat on the mat and looked at the big red ball."] * 90),  # longer than the context
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def model() -> bise.Model:
    return bise.load()


@pytest.fixture
def evaluate(server: Server, model: bise.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """evaluate(task, rows) -> what lm-eval finds (through the server, in this process)."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    far = LocalCompletionsAPI(
        f"{server.url}/v1/completions", model=server.model, tokenizer_backend="remote", tokenized_requests=True,
        batch_size=4, max_length=MOST, max_retries=1,
    )  # fmt: skip

    def run(task: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
        name = task["output_type"]
        (tmp_path / "task.yaml").write_text(json.dumps({"task": name, "test_split": "test", **files, **task}))
        tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
        return [
            lm_eval.simple_evaluate(one, tasks=[name], task_manager=tasks, bootstrap_iters=0, log_samples=True)
            for one in (far, InProcess(model))
        ]

    return run


def same(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics, which have to be the same to the last digit; every answer's score to rounding."""
    (far, near) = ({k: v for k, v in next(iter(r["results"].values())).items() if "," in k} for r in found)
    assert far == near
    samples = [next(iter(r["samples"].values())) for r in found]
    for one, other in zip(*samples, strict=True):
        assert [g for _, g in one["filtered_resps"]] == [g for _, g in other["filtered_resps"]]
        assert [s for s, _ in one["filtered_resps"]] == pytest.approx([s for s, _ in other["filtered_resps"]], abs=2e-4)
    return far


def test_hellaswag(evaluate: Any, shared: Path) -> None:
    found = same(evaluate(CHOICE, hellaswag(shared, 40)))
    assert 0 < found["acc,none"] < 1


def test_piqa(evaluate: Any, shared: Path) -> None:
    found = same(evaluate(CHOICE, piqa(shared, 40)))
    assert 0 < found["acc,none"] < 1


def test_perplexity(evaluate: Any) -> None:
    far, near = (next(iter(r["results"].values())) for r in evaluate(ROLLING, STORIES))
    assert far["bits_per_byte,none"] == pytest.approx(near["bits_per_byte,none"], rel=1e-7)
    assert far["word_perplexity,none"] == pytest.approx(near["word_perplexity,none"], rel=1e-6)


def test_greedy_text(evaluate: Any) -> None:
    texts = [
        [sample["filtered_resps"] for sample in next(iter(r["samples"].values()))]
        for r in evaluate(GENERATE, STORIES[:4])
    ]
    assert texts[0] == texts[1] and any(text != [""] for text in texts[0])
