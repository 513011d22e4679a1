"""Training speed and memory against transformers + peft: the same small Mistral, the same batches, LoRA on all linear
layers, each in a process of its own, taking turns; and of bise on other bases than float32.

    python bench/tuning.py --save tuning.json                            # about ten minutes on two cores
    python bench/tuning.py --sides bise peft --bases F32 --length 256    # some of it
    python bench/tuning.py --step model.gguf --length 256                # one step on a file, and what it takes

Peak memory is the process's largest resident set, from its start: Python, libraries and loading included. The median of
a turn's steps counts, but for the first, and of the rounds the median.
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

from bise.bench.machine import machine, others

WHO = ("bise", "bise checkpointed", "peft", "peft checkpointed")
RANK = 16
ROUNDED = ("Q8_0", "NF4")  # when they are loaded, from the float32 that everybody has


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
    from bise.tune.sample import Sample
    from bise.tune.student import Student

    import torch  # isort: skip  (after bise.tune, as the command has it)

    base = args.kind.lower() if args.kind in ROUNDED else "as it is"
    student = Student.open(args.model, rank=RANK, threads=args.threads, base=base)
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


Row = dict[str, object]  # who, base, round; tokens/s, peak MiB, losses, threads


def in_turns(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Everybody on float32, then bise on the other bases, and all of it again in the next round."""
    write_model(folder, args)
    models = {kind: folder if kind in ("F32", *ROUNDED) else folder / f"{kind}.gguf" for kind in args.bases}
    for kind, path in models.items():
        if path.suffix == ".gguf":
            write_base(path, kind, args)
    ours = [who for who in args.sides if who.startswith("bise")]
    turns = [(who, "F32") for who in args.sides if "F32" in args.bases]
    turns += [(who, kind) for kind in args.bases if kind != "F32" for who in ours]
    rows = []
    for turn in range(args.rounds):
        for who, kind in turns:
            rows.append({"who": who, "base": kind, "round": turn, **child(args, who, models[kind], kind)})
            show(rows[-1])
    return rows


def show(row: Row) -> None:
    losses = " ".join(f"{loss:.5f}" for loss in row["losses"])
    print(f"{row['who']:18} {row['base']:5} {row['tokens/s']:8.1f} tokens/s {row['peak MiB']:8.0f} MiB  {losses}",
          flush=True)  # fmt: skip


def compare(rows: list[Row]) -> None:
    """Medians of the ratios within the rounds: bise on every base, peft on float32."""
    for ours, theirs in (("bise", "peft"), ("bise checkpointed", "peft checkpointed")):
        for kind in dict.fromkeys(row["base"] for row in rows):
            for key in ("tokens/s", "peak MiB"):
                turns = ((ours, kind), (theirs, "F32"))
                both = [[row[key] for row in rows if (row["who"], row["base"]) == turn] for turn in turns]
                if all(both):
                    ratio = statistics.median(a / b for a, b in zip(*both, strict=True))
                    print(f"{ours} on {kind} / {theirs}: {key} {ratio:.2f} times")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft")}


def main() -> None:
    args = arguments()
    if args.who:
        print(json.dumps((theirs if "peft" in args.who else ours)(args)))
        return
    load = others()
    names = ("dim", "layers", "hidden", "vocab", "length", "batch", "learnt", "rounds", "threads")
    about = {"rank": RANK, **{name: getattr(args, name) for name in names}, "load_average": load, "machine": machine()}
    if args.step:
        args.steps = 0
        who = "bise checkpointed"
        rows = [{"who": who, "base": "as it is", "round": i, **child(args, who, args.step, "as it is")}
                for i in range(args.rounds)]  # fmt: skip
        for row in rows:
            show(row)
        result = {"what": "step", "file": args.step.name, "bytes": args.step.stat().st_size, "rows": rows, **about}
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = in_turns(args, Path(folder))
        compare(rows)
        result = {"what": "tuning", "rows": rows, "steps": args.steps, "versions": versions(), **about}
    if args.save:
        args.save.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(dim=1024, layers=8, hidden=3584, vocab=32000, length=1024, batch=1, steps=3, threads=2,
                            rounds=3).items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learnt", type=float, default=1.0, help="share of each sequence that is learnt")
    parser.add_argument("--sides", nargs="+", default=list(WHO), choices=WHO, help="who takes part")
    parser.add_argument("--bases", nargs="+", default=["F32", "Q8_0", "Q4_K", "NF4", "BF16"],
                        help="F32 (all sides); of bise Q8_0 and NF4, rounded when loaded, and GGUF types")  # fmt: skip
    parser.add_argument("--step", type=Path, help="a model: one checkpointed step of bise on it, and nothing else")
    parser.add_argument("--save", type=Path, help="write what was found to a file, for docs/figures/tuning_page.py")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="F32", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
