"""Session: a conversation that keeps its cache, on disk too, so that nothing is read twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import gguf
from .cache import Cache
from .completion import Clock, Completion, Options
from .errors import FormatError, RequestError
from .request import Request, adapter_of, salted
from .sampler import Sampler, Sampling
from .speech import Speech

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .api import Model

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, as in OpenAI's API
KIND = "bise-session-1"  # the architecture in a session file; the number counts changes of its layout


class Session:
    """One sequence with its own cache. Methods mirror Model's, but each goes on from where the last one ended."""

    def __init__(self, model: Model, system: str | None = None) -> None:
        self.model = model
        self.tokens: list[int] = []  # everything said so far, as ids
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.last: Completion | None = None
        self._marks: list[int | None] = []  # tokens there were before each user turn, where that is still true
        self.busy = False
        self._engine = model.engine()

    def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[str]:
        """Go on with `prompt` (text or ids) after all that was said; yields pieces of text, each valid UTF-8."""
        first = not self.tokens
        ids = self.model.tokenizer.encode(prompt, bos=first) if isinstance(prompt, str) else list(prompt)
        return self._continue(self.tokens + ids, options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """`stream`, all at once."""
        return self.finish(self.stream(prompt, **options))

    def stream_chat(self, content: str, **options: Unpack[Options]) -> Iterator[str]:
        """Say something as the user; yields the reply in pieces. Both join `messages` at the end. A reply that is
        broken off counts as far as it came; if nothing had come of it, the message counts as never said."""
        messages, before = [*self.messages, {"role": "user", "content": content}], self.tokens
        ids, complete, self.last = self._ids(messages), False, None
        marks: list[int | None] = [None] * (len(self._marks) + 1)
        if ids[: len(before)] == before:
            marks = [*self._marks, len(before)]
        reply = self._continue(ids, options, self.model.chat_format.stop, start=True)
        try:
            yield from reply
            complete = True
        finally:
            reply.close()
            text = self.last.text.strip() if self.last else ""
            if complete or text:
                self.messages = [*messages, {"role": "assistant", "content": text}]
                self._marks = marks
            else:
                self.tokens = before

    def chat(self, content: str, **options: Unpack[Options]) -> Completion:
        """`stream_chat`, all at once."""
        return self.finish(self.stream_chat(content, **options))

    @property
    def system(self) -> str | None:
        """The instructions before the conversation. When they change, it is read again under the new ones."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        spoken = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *spoken] if text else list(spoken)
        self.tokens, self._marks = [], [None] * len(self._marks)

    def clear(self) -> None:
        """Begin a new conversation under the same instructions, in the same memory."""
        system, self.messages, self._marks, self.last = self.system, [], [], None
        self.system = system

    def undo(self) -> str:
        """Take back the last exchange; returns what the user had said."""
        said = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not said:
            raise RequestError("nothing to undo: nobody has said anything yet")
        content = str(self.messages[said[-1]]["content"])
        self.messages, mark = self.messages[: said[-1]], self._marks.pop() if self._marks else None
        self.tokens = self.tokens[:mark] if mark is not None else []  # []: encoded anew when something is said
        return content

    def again(
        self, options: Options, ids: Sequence[int] | None = None, messages: Sequence[Message] = ()
    ) -> Iterator[str]:
        """Forget what was said and continue `ids`, or reply to `messages`; what they share with the cache is not read
        again."""
        self.tokens, self.messages, self._marks = [], list(messages), []
        if ids is not None:
            return self._continue(ids, options)
        chat = self.model.chat_format
        return self._continue(chat.encode(messages), options, chat.stop, start=True)

    def save(self, path: str | Path) -> None:
        """Write tokens, messages, keys and values to one file (a GGUF of its own kind), whole or not at all."""
        engine = self._engine
        engine.cache.rewind(0, len(engine.history[0]))  # Ctrl-C may have come between the two growing
        said = {"tokens": self.tokens, "messages": self.messages, "marks": self._marks}
        write(path, self.model, engine.cache, 0, engine.history[0], said, adapter_of(engine.salts[0]))

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Session:
        """Take up a saved session without reading anything again. Raises FormatError where the file belongs to
        another model, another kind of cache or another window, and says which."""
        if model is None:
            from .api import load

            about = _about(path, gguf.GGUF(path).keys)
            window = "none" if about["window"] is None else about["window"]
            model = load(about["model"], window=window, context=about["context"], kv=about["kv"])
        session = cls(model)
        about = read(path, model, session._engine.cache, 0)
        session._engine.history[0] = about["held"]
        session._engine.salts[0] = salted("", about["adapter"])
        session.tokens, session.messages, session._marks = about["tokens"], about["messages"], about["marks"]
        return session

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation. What was really said stays as it was sampled: encoding a reply's text again may
        cut it into other pieces, and the cache would be lost with them."""
        encode, eos = self.model.chat_format.encode, self.model.tokenizer.eos
        ids = encode(messages)
        if self.tokens and self.messages:
            known = encode(self.messages)
            if ids[: len(known)] == known:
                closing = [eos] if known[-1] == eos != self.tokens[-1] else []  # never sampled into `tokens`
                return [*self.tokens, *closing, *ids[len(known) :]]
        return ids

    def _continue(
        self, ids: Sequence[int], options: Options, stop: Sequence[str] = (), start: bool = False
    ) -> Generator[str, None, None]:
        """start: what comes is a text of its own (a reply), not the continuation of one."""
        model = self.model
        settings: dict[str, Any] = dict(options)
        progress = settings.pop("progress", None)
        stop = [*stop, *settings.pop("stop", ())]
        ends = frozenset() if settings.pop("ignore_eos", False) else model.stop_ids
        limit, adapter = settings.pop("max_tokens", 512), settings.pop("adapter", "")
        unknown = settings.keys() - {f.name for f in fields(Sampling)}
        if unknown:
            known = ", ".join(Options.__annotations__)
            raise RequestError(f"{sorted(unknown)[0]!r} is no option of generate; there are {known}")
        sampler = Sampler(Sampling(**settings), model.vocab_size)
        request = Request(list(ids), sampler, limit, ends, adapter=model.placed(adapter))
        self._engine.running.clear()  # a stream that nobody finished
        self._engine.submit(request)
        self.busy = True
        return self._speak(request, Speech(model.maybe_tokenizer, stop, start), progress)

    def _speak(
        self, request: Request, speech: Speech, progress: Callable[[int, int], None] | None
    ) -> Generator[str, None, None]:
        pieces, clock, said = [], Clock(), 0
        if progress:
            progress(min(request.read, len(request.prompt)), len(request.prompt))
        try:
            while not speech.stopped and request.finish_reason is None:
                self._engine.step()
                if request.error:
                    raise request.error
                clock.tick(request)
                if progress and len(request.tokens) <= 1:
                    progress(min(request.read, len(request.prompt)), len(request.prompt))
                while said < len(request.tokens) and not speech.stopped:
                    pieces.append(speech.push(request.tokens[said]))
                    said += 1
                    if pieces[-1]:
                        yield pieces[-1]
            rest = speech.flush()
            if rest:
                pieces.append(rest)
                yield rest
        finally:
            self._engine.cancel(request)
            self.busy = False
            del request.tokens[said:], request.logprobs[said:]  # what a step brought past the end was never said
            self.tokens = [*request.prompt, *request.tokens]
            reason = "stop" if speech.stopped else request.finish_reason or "length"
            self.last = Completion(
                "".join(pieces), request.tokens, request.logprobs, reason,
                len(request.prompt), request.reused or 0, clock.prefill, clock.decode,
            )  # fmt: skip

    def finish(self, pieces: Iterator[str]) -> Completion:
        """Run a stream of this session to its end."""
        for _ in pieces:
            pass
        assert self.last is not None
        return self.last


def write(
    path: str | Path, model: Model, cache: Cache, sequence: int, held: Sequence[int], said: Mapping[str, Any],
    adapter: str = "",
) -> None:  # fmt: skip
    """A session's file: what a sequence of the cache holds of the ids `held`, which may be less than all it has; and
    what was said, "tokens", "messages" and "marks". adapter: the id of the one that it was read with."""
    about = {
        "model": str(Path(model.path).resolve()), "fingerprint": model.weights.fingerprint, "kv": model.kv,
        "window": model.config.sliding_window, "context": model.context, "adapter": adapter, "held": held, **said,
    }  # fmt: skip
    keys = {"general.architecture": KIND, f"{KIND}.about": json.dumps(about)}
    gguf.write(path, keys, cache.save(sequence, len(held)))


def read(path: str | Path, model: Model, cache: Cache, sequence: int) -> dict[str, Any]:
    """Put a session's file into a sequence -> what `write` was told. FormatError where it belongs to another model."""
    file = gguf.GGUF(path)
    about = _about(path, file.keys)
    for name, ours in (
        ("fingerprint", model.weights.fingerprint), ("kv", model.kv), ("window", model.config.sliding_window),
    ):  # fmt: skip
        if about[name] != ours:
            raise FormatError(f"{path}: the session's {name} is {about[name]}, the model's is {ours}: "
                              f"it was saved with {about['model']}")  # fmt: skip
    held = about["held"]
    if len(held) > model.context:
        raise FormatError(f"{path}: the session has {len(held):,} tokens, context is {model.context:,}: pass --context")
    cache.restore(sequence, len(held), file.tensors, str(path))
    return {"adapter": "", **about}


def _about(path: str | Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    if keys.get("general.architecture") != KIND:
        raise FormatError(
            f"{path}: general.architecture = {keys.get('general.architecture')!r:.40}, not a saved session"
        )
    try:
        about = json.loads(keys[f"{KIND}.about"])
        sound = all(isinstance(about[k], list) for k in ("held", "tokens", "messages", "marks")) and all(
            k in about for k in ("model", "fingerprint", "kv", "window", "context")
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise FormatError(f"{path}: {KIND}.about is not what this bise writes: saved by another version?")
    return dict(about)
