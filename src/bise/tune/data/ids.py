"""Rows to ids, and which of them are learnt: the model's own chat format, as chat.py writes it when it serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from ... import template
from ...chat import ChatFormat, Render
from ...errors import BiseError
from ...tokenizer import Tokenizer
from .faults import BadRow
from .rows import Choice, Judged, Known, Talk, Told, Writing, without_tail

Long = Literal["refuse", "cut"]


class Encoded(NamedTuple):
    """ids, and the stretches [first, end) of them that are learnt, in order. added: eos, which the format left out."""

    ids: list[int]
    spans: list[tuple[int, int]]
    added: bool = False


@dataclass
class Encoder:
    """How rows become ids.

    chat        None: texts only, for a model without a chat format
    max_length  the most tokens of a sequence
    long        what becomes of longer rows: "refuse", or "cut" (see `cut`); a plain text is always cut into pieces
    last        learn the last answer only
    append_eos  eos behind a text and a completion. In a conversation each answer ends as the chat format has it; where
                that writes nothing behind the last one, eos is put there
    """

    tokenizer: Tokenizer
    chat: ChatFormat | None
    max_length: int | None = None
    long: Long = "refuse"
    last: bool = False
    append_eos: bool = True
    render: Render = template.render
    cut: int = field(default=0, init=False)  # rows that were shortened
    tails: int = field(default=0, init=False)  # conversations whose last message nobody answers
    unclosed: int = field(default=0, init=False)  # conversations to which eos was added

    def encode(self, row: Known) -> list[Encoded]:
        """One sequence; several for a long plain text; the chosen and the rejected one for a pair. Raises BadRow."""
        done = self._encode(row)
        self.unclosed += any(one.added for one in done)
        return done

    def _encode(self, row: Known) -> list[Encoded]:
        if isinstance(row.row, Choice):
            return self._choice(row.row)
        if isinstance(row.row, Judged):
            return [self._fitting([row.row.told], last=True)[0]]
        if isinstance(row.row, Writing) and not row.row.prompt:
            return self._pieces(row.row.text)
        return self._fitting([row.row], self.last)

    def _choice(self, row: Choice) -> list[Encoded]:
        good, bad = self._fitting([row.chosen, row.rejected], last=True)
        first = good.spans[0][0]
        if first != bad.spans[0][0] or good.ids[:first] != bad.ids[:first]:
            raise BadRow("two prompts", "chosen and rejected differ before the last answer, so their prompts differ")
        if good.ids == bad.ids:
            raise BadRow("nothing to prefer", "chosen and rejected are the same tokens")
        return [good, bad]

    def _fitting(self, rows: list[Told], last: bool) -> list[Encoded]:
        """All of these within max_length, shortened alike if need be and allowed."""
        rows = [self._closed(row) if isinstance(row, Talk) else row for row in rows]
        whole = [self._one(row, last) for row in rows]
        longest = max(len(one.ids) for one in whole)
        if self.max_length is None or longest <= self.max_length:
            return whole
        too_long = BadRow("too long", f"{longest:,} tokens, expected at most {self.max_length:,} (--max-length)")
        if self.long == "refuse" or not all(isinstance(row, Talk) for row in rows):
            raise too_long
        for shorter in zip(*(shortened(row, last) for row in rows if isinstance(row, Talk)), strict=False):
            if not any(any(talk.learnt) for talk in shorter):
                break
            done = [self._one(talk, last) for talk in shorter]
            if max(len(one.ids) for one in done) <= self.max_length:
                self.cut += 1
                return done
        raise BadRow("too long", f"{too_long}, and shorter it would lose its answer")

    def _closed(self, talk: Talk) -> Talk:
        closed = without_tail(talk)
        self.tails += len(closed.messages) < len(talk.messages)
        return closed

    def _one(self, row: Told, last: bool) -> Encoded:
        try:
            return self._talk(row, last) if isinstance(row, Talk) else self._writing(row)
        except BadRow:
            raise
        except BiseError as error:
            raise BadRow("refused by the format", str(error)) from None

    def _talk(self, talk: Talk, last: bool) -> Encoded:
        assert self.chat, "conversations are told apart from texts before they come here"
        ids, answers = self.chat.answers(talk.messages, talk.tools, last, self.render)
        added = bool(answers) and not answers[-1].closed and self.tokenizer.eos is not None
        if added and self.tokenizer.eos is not None:
            end = answers[-1].end
            ids, answers[-1] = [*ids[:end], self.tokenizer.eos], answers[-1]._replace(end=end + 1)
        spans = []
        for answer in answers:
            told = {talk.learnt[at] for at in answer.messages}
            if len(told) > 1:
                at = answer.messages[0]
                raise BadRow("mixed weights", f"messages {at} and {at + 1} are one answer, only one of them is learnt")
            if told == {True}:
                spans.append((answer.first, answer.end))
        if not spans:
            raise BadRow("nothing learnt", "no token is learnt: every answer has weight 0, or the format leaves it out")
        return Encoded(ids, spans, added)

    def _writing(self, row: Writing) -> Encoded:
        """The prompt's ids are those that it has by itself, as it is served; the text goes on from there."""
        before = self.tokenizer.encode(row.prompt, bos=True)
        ids = self.tokenizer.encode(row.prompt + row.text, bos=True)
        if ids[: len(before)] != before:
            ids = before + self._continuing(row.text)
        ids += [self.tokenizer.eos] if self.append_eos and self.tokenizer.eos is not None else []
        return Encoded(ids, [(max(1, len(before)), len(ids))])

    def _continuing(self, text: str) -> list[int]:
        """The ids of a text without the space that goes in front of a text by itself."""
        start = self.tokenizer.encode("\n")
        return self.tokenizer.encode("\n" + text)[len(start) :]

    def _pieces(self, text: str) -> list[Encoded]:
        """All of it is learnt: bos in front of each piece, eos behind the last."""
        try:
            ids = self.tokenizer.encode(text)
        except BiseError as error:
            raise BadRow("not a text", str(error)) from None
        ids += [self.tokenizer.eos] if self.append_eos and self.tokenizer.eos is not None else []
        bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        size = len(ids) if self.max_length is None else self.max_length - len(bos)
        pieces = [bos + ids[at : at + size] for at in range(0, len(ids), max(1, size))]
        pieces = [piece for piece in pieces if len(piece) > 1]
        if not pieces:
            raise BadRow("nothing learnt", "no token is learnt: the text is too short")
        return [Encoded(piece, [(1, len(piece))]) for piece in pieces]


def shortened(talk: Talk, last: bool) -> Iterator[Talk]:
    """Ever shorter conversations, cut between exchanges: each answer keeps everything that it was an answer to.

    Where all answers are learnt the last exchange goes first, so that the others keep their beginning; where only the
    last is, the first one goes first (the system prompt stays).
    """
    asks = [i for i, m in enumerate(talk.messages) if m["role"] == "user"]
    starts = [i for n, i in enumerate(asks) if n and talk.messages[i - 1]["role"] != "user"]
    if not last:
        for start in reversed(starts):
            yield replace(talk, messages=talk.messages[:start], learnt=talk.learnt[:start])
        return
    system = next((i for i, m in enumerate(talk.messages) if m["role"] not in ("system", "developer")), 0)
    for start in starts:
        kept = [*range(system), *range(start, len(talk.messages))]
        messages, learnt = [talk.messages[i] for i in kept], [talk.learnt[i] for i in kept]
        yield replace(talk, messages=messages, learnt=learnt)
