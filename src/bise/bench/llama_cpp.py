"""llama.cpp, as the bench drives it: through the C functions of the package llama-cpp-python.

It runs as its own benchmark does: flash attention, keys and values in f16, batches of 512.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from ..errors import RequestError, UnsupportedError
from .turn import ids

BATCH = 512  # tokens
BLOCK = 128  # tokens that are really read to fill a context with copies of
MAIN, SPARE = 0, 1  # sequences: the one that is timed, and the one where copies are put together
_KEPT: list[Any] = []  # log callbacks: the library calls the last one as long as the process lives


class LlamaCpp:
    """A `turn.Player` over a GGUF file. UnsupportedError without the package, RequestError for a file
    that it cannot load."""

    def __init__(self, path: str, threads: int) -> None:
        try:
            self.c: Any = importlib.import_module("llama_cpp")
        except ImportError as error:
            raise UnsupportedError(f"llama.cpp is measured through llama-cpp-python ({error}): install it") from None
        self.threads = threads
        _KEPT.append(self.c.llama_log_callback(lambda *_: None))
        self.c.llama_log_set(_KEPT[-1], ctypes.c_void_p(0))
        self.c.llama_backend_init()
        self.model = self.c.llama_model_load_from_file(path.encode(), self.c.llama_model_default_params())
        if not self.model:
            raise RequestError(f"{path}: llama.cpp cannot load it")
        self.vocab = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))
        self.batch = self.c.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None

    def room(self, sequences: int, context: int) -> None:
        """A context of one sequence has a second one in the same buffer, for `fill`."""
        c = self.c
        if self.context:
            c.llama_free(self.context)
        settings = c.llama_context_default_params()
        settings.n_seq_max = max(sequences, 2)
        settings.kv_unified = sequences == 1
        settings.n_ctx = sequences * (context + (BLOCK if sequences == 1 else 0))
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = 1
        self.context = c.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RequestError(f"llama.cpp cannot make a context of {settings.n_ctx:,} tokens")
        self.memory = c.llama_get_memory(self.context)
        self.lengths, self.block = [0] * sequences, None

    def fill(self, depth: int) -> None:
        if depth == 0:
            self.c.llama_memory_clear(self.memory, False)
            self.lengths = [0 for _ in self.lengths]
        elif depth > self.lengths[MAIN]:
            self._extend(depth)
        self.c.llama_memory_seq_rm(self.memory, MAIN, depth, -1)
        self.lengths[MAIN] = depth

    def _extend(self, depth: int) -> None:
        """Copies of one block of tokens, each moved to the positions that come next. llama.cpp turns the moved keys
        in the step that follows, which must not be timed."""
        c, memory = self.c, self.memory
        block = self.block = self.block or self._read_block()
        while (here := self.lengths[MAIN]) < depth:
            count = min(BLOCK, depth - here)
            if not c.llama_state_seq_set_data(self.context, block, len(block), SPARE):
                raise RequestError(f"llama.cpp has no room for {depth:,} tokens of context")
            c.llama_memory_seq_rm(memory, SPARE, count, -1)
            c.llama_memory_seq_add(memory, SPARE, 0, -1, here)
            c.llama_memory_seq_cp(memory, SPARE, MAIN, -1, -1)
            c.llama_memory_seq_rm(memory, SPARE, -1, -1)
            self.lengths[MAIN] += count

    def _read_block(self) -> Any:
        """The keys and values of BLOCK tokens that are really read, as llama.cpp writes them down."""
        self._feed((id, position, SPARE) for position, id in enumerate(ids(0, BLOCK)))
        size = self.c.llama_state_seq_get_size(self.context, SPARE)
        block = (ctypes.c_uint8 * size)()
        self.c.llama_state_seq_get_data(self.context, block, size, SPARE)
        self.c.llama_memory_seq_rm(self.memory, SPARE, -1, -1)
        return block

    def prefill(self, tokens: int) -> None:
        c, start = self.c, self.lengths[MAIN]
        for at in range(start, start + tokens, BATCH):
            some = [id % self.vocab for id in ids(at, min(BATCH, start + tokens - at))]
            array = (c.llama_token * len(some))(*some)  # the batch only points to it
            self._step(c.llama_batch_get_one(array, len(some)))  # continues sequence 0, which is MAIN
        self.lengths[MAIN] += tokens

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._feed((next(iter(ids(n + s, 1))), n, s) for s, n in enumerate(self.lengths))
            self.lengths = [n + 1 for n in self.lengths]

    def _feed(self, tokens: Iterable[tuple[int, int, int]]) -> None:
        """tokens: (id, position, sequence), in ascending positions; the logits of each sequence's last one are made."""
        batch, last = self.batch, {}
        batch.n_tokens = 0
        for i, (id, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = id % self.vocab, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, 0
            batch.n_tokens, last[sequence] = i + 1, i
        for i in last.values():
            batch.logits[i] = 1
        self._step(batch)

    def _step(self, batch: Any) -> None:
        if self.c.llama_decode(self.context, batch):
            raise RequestError("llama.cpp failed in a step: llama_decode")
        self.c.llama_synchronize(self.context)

    def about(self) -> dict[str, Any]:
        flags = re.findall(r"(\w+) = 1", self.c.llama_print_system_info().decode())
        return {"version": f"llama-cpp-python {version('llama-cpp-python')}", "arithmetic": " ".join(flags)}
