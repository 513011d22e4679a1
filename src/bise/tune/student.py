"""Student: a model that learns. The forward pass is model.py's; what is trained are leaf tensors inside its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import Batch, whole
from ..config import Config
from ..errors import RequestError
from ..lora import Adapter, Delta
from ..model import states
from ..ops import Array
from ..ops.torch import Torch
from ..ops.torch.again import again
from ..ops.torch.memory import give_back
from ..ops.torch.product import base_of, leaves_of
from ..ops.torch.weights import BLOCK, Adapted
from ..quant import TYPES
from ..tokenizer import Tokenizer
from ..weights import Layer, Parameters, Progress, Weights, expected_shapes
from .distributed import Ranks
from .keepers import Keepers, changed
from .sample import Sample

TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
METHODS = ("lora", "dora", "full")
BASES = ("as it is", "nf4", "q8_0")


class Packed(Batch):
    """Whole sequences laid flat, nothing kept: keys and values go straight to attention."""

    def attend(self, ops: Any, layer: int, q: Array, k: Array, v: Array) -> Array:
        return ops.attend_whole(q, k, v, self.spans, self.window, 2 * self.cos.shape[1])


class Student:
    """A model that learns.

    ops, config    the torch backend; the model's shape, with the window that was asked for
    parameters     what the forward pass multiplies by
    trained        name -> leaf tensor, in a fixed order: "blk.0.attn_q.a", ".b", ".magnitude" of an adapter, or
                   "blk.0.attn_q" where the weight itself is trained
    kept           those of them that are this rank's to keep: alone, all
    tokenizer      None where the model has none
    checkpointing  layers are computed again on the way back instead of being remembered (Chen et al. 2016)
    noise          NEFTune's alpha (Jain et al. 2023): uniform noise on the embeddings wherever gradients are wanted
    """

    def __init__(
        self, ops: Torch, config: Config, parameters: Parameters, trained: Mapping[str, Tensor],
        tokenizer: Tokenizer | None = None, *, weights: Weights | None = None, alpha: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.ops, self.config, self.parameters, self.trained = ops, config, parameters, dict(trained)
        self.tokenizer, self.weights, self.alpha = tokenizer, weights, alpha
        self._keepers: Keepers | None = None
        self.checkpointing = False
        self.noise = 0.0
        self._chance = torch.Generator(ops.device).manual_seed(seed)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, method: str = "lora", rank: int = 16, alpha: float | None = None,
        rslora: bool = False, targets: Sequence[str] = TARGETS, base: str = "as it is",
        window: int | str | None = None, device: str = "cpu", threads: int | None = None, seed: int = 0,
        progress: Progress | None = None,
    ) -> Student:  # fmt: skip
        """Weights of any kind: safetensors in 16 or 32 bits, a GGUF in any type, used as they are.

        method   "lora" | "dora": adapters beside frozen weights | "full": every weight, in float32
        alpha    the adapter is scaled by alpha / rank, or alpha / sqrt(rank) with rslora; None: alpha = rank
        targets  which weights get an adapter: names within a layer, and "output"
        base     "as it is" | "nf4": frozen float matrices become 4-bit NormalFloats (QLoRA, Dettmers et al. 2023)
                 | "q8_0": they become blocks of 8 bits, which the CPU multiplies by two to three times as fast
        window   tokens, "none", or None: as the model was made
        """
        _check(method, rank, targets, base)
        _prepare(threads)
        weights = Weights.open(path)
        config = weights.config
        _check_blocks(weights, base)
        if window is not None:
            config = config.with_window(None if window == "none" else int(window))
        ops = Torch(device, "floats" if method == "full" else {"as it is": "file"}.get(base, base))
        parameters = weights.place(ops, progress)
        tokenizer = Tokenizer.of(weights)
        if method == "full":
            trained = _free(parameters, weights.tied)
            return cls(ops, config, parameters, trained, tokenizer, weights=weights, seed=seed)
        alpha = float(rank if alpha is None else alpha)
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        trained = _adapt(ops, parameters, expected_shapes(config), targets, rank, scale, method == "dora", seed)
        return cls(ops, config, parameters, trained, tokenizer, weights=weights, alpha=alpha, seed=seed)

    @classmethod
    def fresh(
        cls, config: Config, tokenizer: Tokenizer | None = None, seed: int = 0, *, device: str = "cpu",
        threads: int | None = None,
    ) -> Student:  # fmt: skip
        """From scratch: ones for the norms, a normal of 0.02 for the rest, less where a block writes back into the
        stream (GPT-2's initialisation, Radford et al. 2019, section 2.3)."""
        _prepare(threads)
        ops, chance = Torch(device), np.random.default_rng(seed)
        made = {}
        for name, shape in expected_shapes(config).items():
            deviation = 0.02 / math.sqrt(2 * config.n_layers) if name.endswith(("attn_output", "ffn_down")) else 0.02
            values = chance.standard_normal(shape, np.float32) * np.float32(deviation)
            made[name] = ops.array(np.ones(shape, np.float32) if len(shape) == 1 else values)
        parts = [field.name for field in fields(Layer)]
        blk = [Layer(**{part: made[f"blk.{i}.{part}"] for part in parts}) for i in range(config.n_layers)]
        parameters = Parameters(made["token_embd"], blk, made["output_norm"], made["output"])
        return cls(ops, config, parameters, _free(parameters), tokenizer, seed=seed)

    @property
    def chance(self) -> Tensor:
        """The state of what noise is drawn from, (n,) uint8, copied."""
        return self._chance.get_state()

    @property
    def kept(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.trained.items() if not tensor.is_meta}

    def share(self, ranks: Ranks) -> None:
        """From now on each trained tensor is kept by one rank alone. All have to compute the same graph at a time, of
        rows of their own; the gradient of what a rank keeps is the sum over all."""
        if ranks.size > 1:
            keepers = self._keepers = Keepers(self.trained, ranks)
            self._put(keepers.trained)

    def together(self) -> None:
        """Every rank has everything again."""
        if self._keepers:
            with torch.no_grad():
                found = [self._keepers.here(tensor)[0].requires_grad_() for tensor in self.trained.values()]
            self._put(dict(zip(self.trained, found, strict=True)))
            self._keepers = None

    def _put(self, trained: Mapping[str, Tensor]) -> None:
        new = {self.trained[name]: tensor for name, tensor in trained.items()}
        self.parameters = _each(self.parameters, lambda w: changed(w, lambda tensor: new.get(tensor, tensor)))
        self.trained = dict(trained)

    def logprobs(self, samples: Sequence[Sample]) -> Tensor:
        """(targets,): log-probability of every learnt token, sample by sample, in order."""
        samples = [sample for sample in samples if sample.targets]
        if not samples:
            return torch.zeros(0, device=self.ops.device)
        tokens = np.concatenate([sample.ids[:-1] for sample in samples])  # the last one predicts nothing
        targets = np.concatenate([sample.ids[1:][sample.learnt[1:]] for sample in samples])
        flat = whole(self.ops, self.config, [len(sample) - 1 for sample in samples])
        wanted = np.flatnonzero(np.concatenate([sample.learnt[1:] for sample in samples]))
        batch = Packed(flat.spans, flat.cos, flat.sin, flat.ring, flat.window, self.ops.array(wanted))
        x = states(self.ops, self.config, self._ends(), tokens, batch, run=self._run)
        (output,) = self._here(self.parameters.output)
        return self.ops.logprobs(x, output, targets)

    def loss(self, samples: Sequence[Sample]) -> Tensor:
        """The SUM of -log p over learnt tokens: the caller divides by the tokens of the whole step."""
        return -self.logprobs(samples).sum()

    def adapter(self, name: str = "") -> Adapter:
        """What was learnt beside the weights, copied. RequestError where the weights themselves were trained."""
        found = {own: w for own, w in _matrices(self.parameters) if isinstance(w, Adapted)}
        if not found:
            raise RequestError("the weights themselves were trained: there is no adapter to take off")
        deltas = {
            own: Delta(
                self._numpy(w.a), self._numpy(w.b), w.scale, None if w.magnitude is None else self._numpy(w.magnitude)
            )
            for own, w in found.items()
        }
        return Adapter(deltas, self.alpha, self.weights.fingerprint if self.weights else "", name)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that changes while it learns, copied: the trained tensors that are kept here, and "chance"."""
        return {name: self._numpy(t) for name, t in self.kept.items()} | {"chance": self.chance.numpy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put back what `state` gave. RequestError if it belongs to a student of another shape."""
        shapes = {name: tuple(t.shape) for name, t in self.trained.items()}
        given = {name: a.shape for name, a in state.items() if name != "chance"}
        if given != shapes:
            wrong = sorted(name for name in given.keys() | shapes.keys() if given.get(name) != shapes.get(name))
            name = wrong[0]
            raise RequestError(
                f"{len(wrong)} trained tensors differ from what was saved, first {name}: {given.get(name)} saved, "
                f"{shapes.get(name)} here: resume with the same rank, method and targets"
            )
        with torch.no_grad():
            for name, t in self.kept.items():
                t.copy_(torch.from_numpy(np.array(state[name])))
        if "chance" in state:
            self._chance.set_state(torch.from_numpy(np.array(state["chance"])))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The adapter is switched off inside: what the model was before it learnt, for no memory at all."""
        learning = self.parameters
        self.parameters = _each(learning, base_of)
        try:
            yield
        finally:
            self.parameters = learning

    def _run(self, block: Callable[..., Array], *its: Any) -> Array:
        *before, w, x, batch, layer = its
        if layer == 0 and self.noise and torch.is_grad_enabled():
            x = x + self._noise(x, batch.spans)

        def whole(x: Array) -> Array:
            return block(*before, Layer(*self._here(*vars(w).values())), x, batch, layer)

        if self.checkpointing:
            return again(whole, x, [leaf for weight in vars(w).values() for leaf in leaves_of(weight)])
        return whole(x)

    def _ends(self) -> Parameters:
        """The parameters with what lies before and after the blocks here; they come and go with it."""
        (table,), (norm,) = self._here(self.parameters.token_embd), self._here(self.parameters.output_norm)
        return replace(self.parameters, token_embd=table, output_norm=norm)

    def _here(self, *weights: Any) -> Sequence[Any]:
        """What other ranks keep of them as well, to compute with."""
        return self._keepers.here(*weights) if self._keepers else weights

    def stir(self, *seeds: int) -> None:
        """What noise is drawn from begins anew."""
        self._chance.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))

    def _noise(self, x: Tensor, spans: np.ndarray) -> Tensor:
        """Uniform in +-alpha / sqrt(L * dim), L the tokens of each sequence."""
        lengths = torch.as_tensor(np.repeat(spans[:, 2], spans[:, 2]), device=x.device)
        most = self.noise / (lengths * x.shape[1]).sqrt()
        uniform = torch.rand(x.shape, generator=self._chance, device=x.device)
        return (2 * uniform - 1) * most[:, None]

    def _numpy(self, t: Tensor) -> np.ndarray:
        return np.array(self.ops.numpy(t))


def _prepare(threads: int | None) -> None:
    give_back()
    if threads:
        torch.set_num_threads(threads)


def _check(method: str, rank: int, targets: Sequence[str], base: str) -> None:
    for name, value, known in (("method", method, METHODS), ("base", base, BASES)):
        if value not in known:
            raise RequestError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if rank < 1:
        raise RequestError(f"rank is {rank}, expected 1 or more")
    strange = [target for target in targets if target not in (*TARGETS, "output")]
    if strange or not targets:
        raise RequestError(f"targets {', '.join(strange) or 'none'}: expected some of {', '.join(TARGETS)}, output")


def _check_blocks(weights: Weights, base: str) -> None:
    """Both have a scale for each block of a row."""
    block = {"nf4": BLOCK, "q8_0": TYPES["Q8_0"].block}.get(base, 1)
    for name, entry in weights.entries.items():
        if entry.type in ("F32", "F16", "BF16") and len(entry.shape) == 2 and entry.shape[1] % block:
            raise RequestError(
                f"{name} has rows of {entry.shape[1]} numbers, and {base} wants multiples of {block}: take --base as-is"
            )


def _matrices(parameters: Parameters) -> Iterator[tuple[str, Any]]:
    """What `linear` multiplies by, under canonical names."""
    for i, layer in enumerate(parameters.blk):
        for part in TARGETS:
            yield f"blk.{i}.{part}", getattr(layer, part)
    yield "output", parameters.output


def _each(p: Parameters, change: Callable[[Any], Any]) -> Parameters:
    """The model with every weight changed."""
    layers = [Layer(*map(change, vars(w).values())) for w in p.blk]
    return Parameters(change(p.token_embd), layers, change(p.output_norm), change(p.output))


def _adapt(
    ops: Torch, parameters: Parameters, shapes: Mapping[str, tuple[int, ...]], targets: Sequence[str], rank: int,
    scale: float, dora: bool, seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Put an adapter beside every target -> its leaf tensors. A is uniform in +-1/sqrt(in), B zero (Kaiming's bound
    with a = sqrt(5), as PEFT begins)."""
    trained: dict[str, Tensor] = {}
    for number, (name, base) in enumerate(list(_matrices(parameters))):
        part = name.rpartition(".")[2]
        if part not in targets:
            continue
        rows, cols = shapes[name]
        bound = 1 / math.sqrt(cols)
        a = np.random.default_rng([seed, number]).uniform(-bound, bound, (rank, cols)).astype(np.float32)
        w = Adapted(base, ops.array(a), ops.array(np.zeros((rows, rank), np.float32)), scale)
        own = {"a": w.a, "b": w.b}
        if dora:
            own["magnitude"] = w.magnitude = ops.lengths(w)
        trained |= {f"{name}.{kind}": t.requires_grad_() for kind, t in own.items()}
        holder = parameters if name == "output" else parameters.blk[int(name.split(".")[1])]
        setattr(holder, part, w)
    return trained


def _free(parameters: Parameters, tied: bool = False) -> dict[str, Tensor]:
    """Every weight as a float32 leaf, in place -> the leaves by name; tied: the output is the embedding itself."""
    trained: dict[str, Tensor] = {}

    def leaf(holder: Any, part: str, name: str) -> None:
        trained[name] = getattr(holder, part).float().requires_grad_()
        setattr(holder, part, trained[name])

    leaf(parameters, "token_embd", "token_embd")
    for i, layer in enumerate(parameters.blk):
        for field in fields(Layer):
            leaf(layer, field.name, f"blk.{i}.{field.name}")
    leaf(parameters, "output_norm", "output_norm")
    if tied:
        parameters.output = parameters.token_embd
    else:
        leaf(parameters, "output", "output")
    return trained
