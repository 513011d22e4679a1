"""One client with 32 requests at once beside seven with one each: who gets how much."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .checks import Check
from .client import Target, send
from .prompts import Prompts, chat
from .tally import Answer, jain, outcomes, spread

HOG, POLITE = 32, 7
BACK_OFF = 0.25  # seconds before one asks again who was told to wait


async def hog(
    targets: list[Target], sources: list[str], seconds: float, prompt: int, answer: int
) -> tuple[dict[str, Any], list[Check]]:
    """targets and sources: one for each of the eight, the hog's first. A client is told by its key or its address."""
    prompts, answers = await Prompts.measured(targets[0]), {n: [] for n in range(1 + POLITE)}  # type: ignore[var-annotated]
    until = time.perf_counter() + seconds

    async def one(client: int) -> None:
        while time.perf_counter() < until:
            body = chat(targets[client], prompts.text(prompt), answer)
            reply = await send(targets[client], "chat/completions", body, source=sources[client])
            answers[client].append(Answer(reply))
            if reply.status != 200:
                await asyncio.sleep(BACK_OFF)

    await asyncio.gather(*(one(0) for _ in range(HOG)), *(one(n) for n in range(1, 1 + POLITE)))
    return judged(answers, until)


def judged(answers: dict[int, list[Answer]], until: float) -> tuple[dict[str, Any], list[Check]]:
    """Tokens are counted that came before `until`."""
    shares = [sum(_tokens_before(a, until) for a in mine) for mine in answers.values()]
    waits = [[a.first for a in mine if a.times] for mine in answers.values()]
    polite = [wait for mine in waits[1:] for wait in mine]
    index = round(jain(shares), 4)
    figures = {
        "tokens_per_client": shares, "jain": index, "longest_wait_s": round(max(map(max, filter(None, waits))), 3),
        "hog_first_ms": spread(waits[0]), "polite_first_ms": spread(polite),
        "outcomes": [outcomes(a.reply for a in mine) for mine in answers.values()],
    }  # fmt: skip
    return figures, [Check("Jain's index of tokens per client", index, ">=", 0.9)]


def _tokens_before(answer: Answer, until: float) -> float:
    """By the share of its pieces; the prompt belongs to what a client takes, too."""
    if not answer.times:
        return 0.0
    return answer.prompt + answer.tokens * sum(at <= until for at in answer.times) / len(answer.times)
