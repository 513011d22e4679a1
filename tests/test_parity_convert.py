"""What bise convert writes, opened by those who invented the layouts: transformers, safetensors, mistral-common, llama.cpp
and the gguf package. A model that transformers made goes to them all and gives the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bise import convert
from bise.api import BUILT_IN
from bise.chat import TEMPLATE_V1
from bise.tokenizer import Tokenizer
from bise.weights import Weights
from steps import one_torch_thread  # noqa: F401

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif(not BUILT_IN.exists(), reason="the built-in model is not here"),
]
TEXT = "Once upon a time, there was a little fox who lived in the north wind. One day"
CLOSE = 1e-4


def theirs(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy())


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """puff for transformers, in float32: exactly what its blocks say."""
    out = tmp_path_factory.mktemp("parity") / "puff"
    convert.convert(BUILT_IN, out, dtype="F32", shard=5_000_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random model that transformers saved in bf16, with a vocabulary of 512 pieces of puff's, and what it computes."""
    torch.manual_seed(1)
    config = transformers.MistralConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=3072,
        intermediate_size=160, max_position_embeddings=512, sliding_window=None, rms_norm_eps=1e-5,
        initializer_range=0.12, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    made = transformers.MistralForCausalLM(config).to(torch.bfloat16)
    for name, weight in made.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    out = tmp_path_factory.mktemp("theirs") / "model"
    made.save_pretrained(out, max_shard_size="300KB")
    (out / "tokenizer.model").write_bytes(Tokenizer.of(Weights.open(BUILT_IN)).proto())
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE_V1, "add_bos_token": True}))
    return out, loaded(out)


def test_transformers_opens_a_converted_gguf(folder: Path) -> None:
    """Logits of puff as transformers and as bise's reference see it, past the window of 128."""
    import bise

    ids = np.random.default_rng(0).integers(3, 3000, 200).tolist()
    want = bise.load(BUILT_IN, backend="reference", kv="f32").logits(ids)
    assert np.ptp(want) > 4
    assert np.abs(theirs(loaded(folder), ids) - want).max() <= CLOSE


def test_transformers_cuts_and_ends_alike(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.of(Weights.open(BUILT_IN))
    assert ours is not None
    assert tokenizer(TEXT).input_ids == ours.encode(TEXT, bos=True)
    assert tokenizer.decode(ours.encode(TEXT)) == TEXT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 3072)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s> [INST] Hi [/INST] Ho</s>"
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)


def test_safetensors_opens_both_folders(folder: Path, tmp_path: Path) -> None:
    """Whole rows only have moved between the two layouts."""
    from safetensors.numpy import load_file

    convert.convert(folder, tmp_path / "mistral", "mistral")
    theirs, ours = load_file(tmp_path / "mistral" / "consolidated.safetensors"), Weights.open(BUILT_IN)
    params = json.loads((tmp_path / "mistral" / "params.json").read_bytes())
    assert (params["dim"], params["n_kv_heads"], params["sliding_window"]) == (256, 4, 128)
    for own, name in (("blk.2.attn_q", "layers.2.attention.wq.weight"), ("output_norm", "norm.weight")):
        np.testing.assert_array_equal(theirs[name], ours[own].dequantise())


def test_llama_cpp_opens_a_converted_folder(model: tuple[Path, Any], tmp_path: Path) -> None:
    """transformers -> GGUF -> llama.cpp, whole and in parts: the logits, within what bf16 products in llama.cpp cost."""
    from llama import llama_cpp

    ids = np.random.default_rng(5).integers(3, 3000, 100).tolist()
    want = theirs(model[1], ids)
    cut = Tokenizer.of(Weights.open(BUILT_IN)).encode(TEXT, bos=True)
    whole = convert.convert(model[0], tmp_path / "whole.gguf", dtype="F32")
    parts = convert.convert(model[0], tmp_path / "part.gguf", dtype="F32", shard=1_000_000)
    assert len(parts) > 2
    for file in (whole[0], parts[0]):
        llama = llama_cpp.Llama(str(file), n_ctx=128, n_batch=128, n_threads=1, logits_all=True, verbose=False,
                                type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)  # fmt: skip
        llama.eval(ids)
        assert np.ptp(want) > 4
        assert np.abs(np.array(llama.scores[: len(ids)]) - want).max() <= 2e-3
        assert llama.tokenize(TEXT.encode(), add_bos=True) == cut
        llama.close()


def test_gguf_opens_it(model: tuple[Path, Any], tmp_path: Path) -> None:
    """The keys and their types that llama.cpp's converter writes for such a model, and the tensors' types."""
    gguf = pytest.importorskip("gguf")

    convert.convert(model[0], tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    kinds = {name: field.types[-1].name for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert kinds == {
        "general.architecture": "STRING", "general.type": "STRING", "general.name": "STRING",
        "general.file_type": "UINT32", "general.quantization_version": "UINT32",
        "llama.block_count": "UINT32", "llama.context_length": "UINT32", "llama.embedding_length": "UINT32",
        "llama.feed_forward_length": "UINT32", "llama.attention.head_count": "UINT32",
        "llama.attention.head_count_kv": "UINT32", "llama.rope.freq_base": "FLOAT32",
        "llama.attention.layer_norm_rms_epsilon": "FLOAT32", "llama.attention.key_length": "UINT32",
        "llama.attention.value_length": "UINT32", "llama.vocab_size": "UINT32", "llama.rope.dimension_count": "UINT32",
        "tokenizer.ggml.model": "STRING", "tokenizer.ggml.pre": "STRING", "tokenizer.ggml.tokens": "STRING",
        "tokenizer.ggml.scores": "FLOAT32", "tokenizer.ggml.token_type": "INT32",
        "tokenizer.ggml.bos_token_id": "UINT32", "tokenizer.ggml.eos_token_id": "UINT32",
        "tokenizer.ggml.unknown_token_id": "UINT32", "tokenizer.ggml.add_bos_token": "BOOL",
        "tokenizer.ggml.add_eos_token": "BOOL", "tokenizer.ggml.add_space_prefix": "BOOL",
        "tokenizer.chat_template": "STRING",
    }  # fmt: skip
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_BF16
    assert reader.get_field("tokenizer.chat_template").contents() == TEMPLATE_V1
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}
    assert all(tensor.tensor_type.name == "F32" for tensor in reader.tensors if tensor.name.endswith("norm.weight"))


def test_file_types_are_llama_cpps() -> None:
    gguf = pytest.importorskip("gguf")

    from bise.quant import TYPES

    assert set(convert.FILE_TYPES) == set(TYPES)
    for kind, number in convert.FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name.startswith((f"MOSTLY_{kind}", "ALL_F32"))


def test_mistral_common_opens_the_vocabulary(tmp_path: Path) -> None:
    """Mistral's v3 vocabulary through a GGUF: mistral-common takes the file for v3 and says a chat the same way."""
    import mistral_common
    from mistral_common.protocol.instruct.messages import UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    from tiny import tiny_config, tiny_weights, write_tiny_mistral

    config = tiny_config(vocab_size=32_768, dim=16, hidden_dim=16, n_layers=1)
    source = write_tiny_mistral(tmp_path / "v3", config, tiny_weights(config))
    data = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    (source / "tokenizer.model.v3").write_bytes(data.read_bytes())
    convert.convert(source, tmp_path / "v3.gguf")
    convert.convert(tmp_path / "v3.gguf", tmp_path / "back", "mistral")
    request = ChatCompletionRequest(messages=[UserMessage(content="How warm is it in Nîmes?")])
    said = [MistralTokenizer.from_file(str(path)).encode_chat_completion(request)
            for path in (data, tmp_path / "back" / "tokenizer.model.v3")]  # fmt: skip
    assert said[0].tokens == said[1].tokens
