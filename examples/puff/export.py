"""The best weights of train.py and their vocabulary -> one GGUF file, matrices in Q8_0 and norms in F32.

python examples/puff/export.py --work WORK --out puff.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from train import CONFIG

from bise import gguf, safetensors
from bise.chat import TEMPLATE_V1
from bise.config import Config
from bise.quant import QTensor
from bise.tokenizer import Tokenizer
from bise.weights import expected_shapes

MOSTLY_Q8_0 = 7  # general.file_type
ABOUT = ("A small model of Mistral 7B's architecture that tells short children's stories. Trained from scratch on "
         "TinyStories samples (CDLA-Sharing-1.0), fables and old children's books (public domain).")  # fmt: skip


def keys(config: Config, steps: int) -> dict[str, Any]:
    """What a reader of the file needs besides the vocabulary. The window is a key of its own: bise honours it."""
    return {
        "general.architecture": "llama",
        "general.name": "puff",
        "general.description": ABOUT,
        "general.license": "apache-2.0",
        "general.languages": ["en"],
        "general.file_type": MOSTLY_Q8_0,
        "llama.block_count": config.n_layers,
        "llama.context_length": config.context,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.attention.sliding_window": config.sliding_window,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
        "puff.training_steps": steps,
        "tokenizer.chat_template": TEMPLATE_V1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with run/ and tokenizer.model")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found, facts = safetensors.load(args.work / "run" / "best.safetensors")
    plain = {name: found[name] for name in expected_shapes(CONFIG)}
    tensors = {f"{name}.weight": QTensor.of(a, "Q8_0" if a.ndim == 2 else "F32") for name, a in plain.items()}
    head = keys(CONFIG, int(facts["step"])) | Tokenizer.from_file(args.work / "tokenizer.model").gguf_keys()
    gguf.write(args.out, head, tensors)
    print(f"{args.out}: step {int(facts['step']):,}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
