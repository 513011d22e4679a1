"""Training speed and memory against transformers + peft: the same small Mistral, the same batches, LoRA on all linear
layers, each in a process of its own, taking turns.

    python bench/tuning.py --rounds 3                                    # length 1024, float32 base, CPU
    python bench/tuning.py --sides bise --bases F32 BF16 NF4 Q4_K         # the same model's shape on other bases
    python bench/tuning.py --step model.gguf --length 256                # one step on a file, and what it takes

Peak memory is the process's largest resident set, from its start: Python, libraries and loading included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WHO = ("bise", "bise checkpointed", "peft", "peft checkpointed")
RANK = 16


def shape(args: argparse.Namespace) -> dict[str, int]:
    return dict(
        hidden_size=args.dim, num_hidden_layers=args.layers, num_attention_heads=args.dim // 64,
        num_key_value_heads=args.dim // 256, head_dim=64, intermediate_size=args.hidden, vocab_size=args.vocab,
        max_position_embeddings=4096,
    )  # fmt: skip


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """Random weights, saved by transformers itself."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**shape(args), sliding_window=None)).save_pretrained(folder)


def write_base(path: Path, kind: str, args: argparse.Namespace) -> None:
    """Random blocks of a GGUF type in the same shape."""
    from shape import keys, random_tensor

    from bise import gguf
    from bise.config import Config
    from bise.names import spelled
    from bise.weights import expected_shapes

    config = Config(args.dim, args.layers, args.dim // 64, args.dim // 256, 64, args.hidden, args.vocab)
    shapes = expected_shapes(config).items()
    kinds = {name: "F32" if len(shape) == 1 else kind for name, shape in shapes}
    tensors = {spelled(name, "gguf"): random_tensor(kinds[name], shape, i) for i, (name, shape) in enumerate(shapes)}
    about = {key: value for key, value in keys(config, kind).items() if value is not None}
    gguf.write(path, about | {"llama.attention.key_length": 64}, tensors)


def batches(args: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, learnt), (batch, length) each; of every sequence the last part (--learnt) is learnt."""
    rng = np.random.default_rng(0)
    learnt = np.zeros((args.batch, args.length), bool)
    learnt[:, max(1, round(args.length * (1 - args.learnt))) :] = True
    return [(rng.integers(0, args.vocab, learnt.shape, np.int32), learnt) for _ in range(args.steps + 1)]


def timed(step, optimiser, args: argparse.Namespace) -> dict[str, object]:
    """One step to warm up, then the others, each timed."""
    import torch

    losses, seconds = [], []
    for ids, learnt in batches(args):
        begun = time.perf_counter()
        loss = step(ids, learnt) / learnt.sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - begun)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0])
    tokens = args.batch * args.length
    return {"tokens/s": tokens / statistics.median(seconds[1:] or seconds), "peak MiB": peak / 1024, "losses": losses,
            "threads": torch.get_num_threads()}  # fmt: skip


def ours(args: argparse.Namespace) -> dict[str, object]:
    import torch

    from bise.tune.sample import Sample
    from bise.tune.student import Student

    student = Student.open(
        args.model, rank=RANK, threads=args.threads, base="nf4" if args.kind == "NF4" else "as it is"
    )
    student.checkpointing = "checkpointed" in args.who
    optimiser = torch.optim.AdamW(student.trained.values(), 1e-4)

    def step(ids, learnt):
        return student.loss([Sample(i, k) for i, k in zip(ids, learnt, strict=True)])

    return timed(step, optimiser, args)


def theirs(args: argparse.Namespace) -> dict[str, object]:
    import peft
    import torch
    from transformers import MistralForCausalLM

    torch.set_num_threads(args.threads)
    model = MistralForCausalLM.from_pretrained(args.model, attn_implementation="sdpa", dtype=torch.float32)
    model.config.use_cache = False
    wanted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if "checkpointed" in args.who:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=wanted)).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step(ids, learnt):
        tokens = torch.as_tensor(ids, dtype=torch.long)
        labels = tokens.masked_fill(~torch.as_tensor(learnt), -100)
        return model(input_ids=tokens, labels=labels).loss * int(learnt.sum())

    return timed(step, optimiser, args)


def child(args: argparse.Namespace, who: str, model: Path, kind: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--who", who, "--model", str(model), "--kind", kind]
    for name in ("dim", "layers", "hidden", "vocab", "length", "batch", "learnt", "steps", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        raise SystemExit(f"{who}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(who: str, kind: str, result: dict) -> None:
    losses = " ".join(f"{x:.5f}" for x in result["losses"])
    print(f"{who:20s} {kind:5s} {result['tokens/s']:8.1f} tokens/s {result['peak MiB']:8.0f} MiB  {losses}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(dim=1024, layers=8, hidden=3584, vocab=32000, length=1024, batch=1, steps=3, threads=2,
                            rounds=1).items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learnt", type=float, default=1.0, help="share of each sequence that is learnt")
    parser.add_argument("--sides", nargs="+", default=list(WHO), help="who takes part")
    parser.add_argument("--bases", nargs="+", default=["F32"], help="F32, BF16, NF4, or a GGUF type (bise only)")
    parser.add_argument("--step", type=Path, help="a model: one checkpointed step of bise on it, and nothing else")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="F32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.who:
        print(json.dumps((theirs if "peft" in args.who else ours)(args)))
        return
    if args.step:
        args.steps = 0
        show("bise checkpointed", "step", child(args, "bise checkpointed", args.step, "as it is"))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), args)
        models = {
            kind: Path(folder) if kind in ("F32", "NF4") else Path(folder) / f"{kind}.gguf" for kind in args.bases
        }
        for kind, path in models.items():
            if path.suffix == ".gguf":
                write_base(path, kind, args)
        for _ in range(args.rounds):
            for who in args.sides:
                for kind in args.bases:
                    show(who, kind, child(args, who, models[kind], kind))


if __name__ == "__main__":
    main()
