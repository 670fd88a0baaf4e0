"""The corpus: small honest files of each kind, written anew by python -m fuzz.seeds."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from fuzz.targets import CORPUS

LLAMA = {"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 6,
         "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False,
         "quantization_config": {"quant_method": "fp8"}}  # fmt: skip
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none",
        "target_modules": ["q_proj"], "rank_pattern": {"^model.q_proj": 2}, "alpha_pattern": {},
        "fan_in_fan_out": False, "modules_to_save": None}  # fmt: skip
# ruff: noqa: E501
RECIPES = (
    "base: b\nexperts: {x: a, y: c}\nmethod: ties\nparams: {density: 0.3, lambda: {gradient: [0, 1]}}\n"
    "calibrate: [{method: wsc, params: {target: sphere}}]\nseed: 3\n",
    "name: first\nbase: b\nexperts: {x: a}\nmethod: average\n---\nbase: b\nexperts: {first: first}\n"
    "method: dare\nparams: {weights: {x: [{filter: mlp, value: 0.5}, 1.0]}}\noutput: {dtype: bfloat16}\n",
    "base: b\nexperts: {x: a}\nmoe: {router: random, experts_per_token: 1}\n",
)
MERGEKIT = (
    "merge_method: ties\nbase_model: b\nmodels:\n- model: a\n  parameters: {weight: 1.0, density: "
    "[0.1, 0.9]}\n- model: c\n  parameters: {weight: {filter: mlp}}\ndtype: bfloat16\n",
    "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 4]}]\n"
    "- sources: [{model: b, layer_range: [2, 6]}]\ntokenizer: {source: union, tokens: {x: {source: a}}}\n",
)
SUITE = (
    "suite: s\nmodel: {class: BertModel}\ntasks:\n  one: {data: {test: a.jsonl}, head: h.safetensors}\n"
    "  two: {data: b.csv, metric: accuracy}\n"
)
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
}


def files() -> Iterator[tuple[str, bytes]]:
    """Each file's path below the corpus, and its bytes."""
    torch.manual_seed(0)
    first = {"model.a.weight": torch.randn(3, 2), "model.norm.weight": torch.ones(2).bfloat16()}
    second = {"lm_head.weight": torch.randn(2, 3), "ids": torch.arange(3)}
    weights = {f"base_model.model.q_proj.lora_{part}.weight": torch.randn(2, 2) for part in "AB"}
    for name, state in (("first", first), ("second", second), ("adapter", weights)):
        yield f"safetensors/{name}", save(state, {"format": "pt"})
    shards = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    shards |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    yield "index/index", json.dumps({"metadata": {"total_size": 52}, "weight_map": shards}).encode()
    yield "config/llama", json.dumps(LLAMA).encode()
    yield "adapter/peft", json.dumps(PEFT).encode()
    yield "tokenizer/bpe", json.dumps(TOKENIZER).encode()
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.5]]}}
    yield "tokenizer/unigram", json.dumps(unigram).encode()
    yield "sentencepiece/two", b"\n\x08\n\x01a\x15\x00\x00\x80\xbf\n\t\n\x02bc\x15\x00\x00\x00\xc0"
    for number, text in enumerate(RECIPES):
        yield f"recipe/{number}", text.encode()
    for number, text in enumerate(MERGEKIT):
        yield f"mergekit/{number}", text.encode()
    yield "suite/two", SUITE.encode()
    yield "rows/texts", b'{"text": "a b", "label": 1}\n{"text": "c", "label": 0}\n'
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save({"state_dict": first}, stream, _use_new_zipfile_serialization=zipped)
        yield f"pickle/{'zip' if zipped else 'legacy'}", stream.getvalue()
    yield "pickle/plain", pickle.dumps({"a": np.ones((2, 3), np.float32), "b": {"c"}})
    for kind in ("png", "jpeg", "bmp"):
        stream = io.BytesIO()
        Image.new("RGB", (5, 4), (9, 99, 199)).save(stream, kind)
        yield f"image/{kind}", stream.getvalue()
    yield "gguf/small", _gguf()


def _gguf() -> bytes:
    import tempfile

    import gguf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_block_count(1)
        writer.add_token_list(["a", "b"])
        writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float16))
        writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


if __name__ == "__main__":
    for name, content in files():
        place = CORPUS / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
