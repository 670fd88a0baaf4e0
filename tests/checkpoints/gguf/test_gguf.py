"""GGUF files as models: names, the order of rows, norms, formats, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import CheckpointError, MagmergeError, MissingExtraError
from tests.checkpoints.gguf.files import turned, write_gguf
from tests.conftest import CommandLine, State
from tests.quick import examples

HEADS, GROUPS, WIDTH, VOCABULARY = 4, 2, 64, 32
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
FACTS = {
    "general.architecture": "llama",
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "tokenizer.ggml.tokens": [f"token {number}" for number in range(VOCABULARY)],
    "tokenizer.ggml.scores": [float(number) for number in range(VOCABULARY)],
}


def model(seed: int, biases: bool = False) -> State:
    """A small model under transformers' names."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    key = WIDTH // HEADS * GROUPS
    for number in range(2):
        start = f"model.layers.{number}."
        for stem in LAYER:
            inner = {"self_attn.k_proj": (key, WIDTH), "self_attn.v_proj": (key, WIDTH)}
            shape = (WIDTH,) if stem.endswith("norm") else inner.get(stem, (WIDTH, WIDTH))
            shapes[f"{start}{stem}.weight"] = shape
        if biases:
            shapes |= {f"{start}self_attn.q_proj.bias": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def stored(state: State, *, turn: bool = True, shift: float = 0.0) -> dict[str, Tensor]:
    """The same as llama.cpp writes it."""
    tensors = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        own = NAMES.get(name)
        if own is None:
            number, rest = stem.removeprefix("model.layers.").split(".", 1)
            own = f"blk.{number}.{LAYER[rest]}.{last}"
        heads = {"q_proj": HEADS, "k_proj": GROUPS}.get(stem.rpartition(".")[2], 0)
        rows = turned(tensor, heads) if heads and turn else tensor
        tensors[own] = rows + shift if name.endswith("norm.weight") else rows
    return tensors


def test_it_is_merged_as_the_model_that_it_was_written_from(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    base, expert = model(0), model(1)
    save_file(base, tmp_path / "base.safetensors")
    file = write_gguf(tmp_path / "e.gguf", stored(expert), FACTS)
    call = ["--base", tmp_path / "base.safetensors", "--expert", file, "--set", "lambda=1"]
    done = magmerge_cli("merge", *call, tmp_path / "o.safetensors")
    assert done.code == 0, done.message
    merged = load_file(tmp_path / "o.safetensors")
    assert set(merged) == set(base)
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expert[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("architecture", "turn", "shift"),
    [("llama", True, 0.0), ("qwen2", False, 0.0), ("qwen3", False, 0.0), ("gemma", False, 1.0)],
)
def test_each_architecture_is_read_as_it_was(
    tmp_path: Path, architecture: str, turn: bool, shift: float
) -> None:
    state = model(3, biases=True)
    facts = {**FACTS, "general.architecture": architecture}
    table = {"rope_freqs.weight": torch.ones(8)}
    file = write_gguf(
        tmp_path / "m.gguf", {**stored(state, turn=turn, shift=shift), **table}, facts
    )
    read = open_checkpoint(file)
    assert set(read.specs) == set(state)
    for name, tensor in state.items():
        assert torch.allclose(read.read(name), tensor, atol=1e-6), name
        flat = tensor.reshape(-1)
        for start, stop in ((0, 1), (WIDTH // 2, WIDTH), (3, len(flat) - 1)):
            part = read.read_part(name, start, stop)
            assert torch.allclose(part, flat[start:stop], atol=1e-6), (name, start, stop)


def test_gemmas_four_norms_have_their_names(tmp_path: Path) -> None:
    names = {"post_attention_norm": "post_attention_layernorm",
             "ffn_norm": "pre_feedforward_layernorm",
             "post_ffw_norm": "post_feedforward_layernorm"}  # fmt: skip
    tensors = {f"blk.0.{name}.weight": torch.full((4,), 1.5) for name in names}
    file = write_gguf(tmp_path / "m.gguf", tensors, {"general.architecture": "gemma3"})
    read = open_checkpoint(file)
    assert set(read.specs) == {f"model.layers.0.{name}.weight" for name in names.values()}
    assert all(torch.equal(read.read(name), torch.full((4,), 0.5)) for name in read.specs)


def test_experts_in_one_tensor_are_each_their_own(tmp_path: Path) -> None:
    gate = torch.randn(3, 8, 4)
    tensors = {"blk.0.ffn_gate_exps.weight": gate, "blk.0.ffn_gate_inp.weight": torch.ones(3, 4)}
    for architecture, name in (
        ("llama", "block_sparse_moe.experts.{}.w1"),
        ("qwen3moe", "mlp.experts.{}.gate_proj"),
    ):
        file = write_gguf(tmp_path / "m.gguf", tensors, {"general.architecture": architecture})
        read = open_checkpoint(file)
        for number in range(3):
            own = f"model.layers.0.{name.format(number)}.weight"
            assert torch.equal(read.read(own), gate[number])


def test_a_shared_expert_has_a_gate_of_one_row(tmp_path: Path) -> None:
    tensors = {"blk.0.ffn_gate_inp_shexp.weight": torch.arange(4.0),
               "blk.0.ffn_up_shexp.weight": torch.ones(6, 4)}  # fmt: skip
    facts = {"general.architecture": "qwen2moe"}
    read = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, facts))
    gate = read.read("model.layers.0.mlp.shared_expert_gate.weight")
    assert torch.equal(gate, torch.arange(4.0)[None])
    assert read.specs["model.layers.0.mlp.shared_expert.up_proj.weight"].shape == (6, 4)


def test_a_diffusion_model_keeps_its_names_and_shapes(tmp_path: Path) -> None:
    kernel = torch.randn(2, 3, 1, 2, 2)
    tensors = {"img_in.weight": torch.ones(2, 4).half(), "conv.weight": kernel.reshape(6, 4)}
    facts = {"general.architecture": "flux", "comfy.gguf.orig_shape.conv.weight": [2, 3, 1, 2, 2]}
    read = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, facts))
    assert torch.equal(read.read("conv.weight"), kernel)
    assert read.specs["img_in.weight"].dtype == "F16"


def test_quantised_ones_are_what_their_numbers_stand_for(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    expert = model(1)
    own: dict[str, Any] = stored(expert)
    right = {}
    for name, tensor in own.items():
        if tensor.ndim == 2:
            # Q8_0: 32 numbers of 8 bits after the half that they are multiplied with.
            rows = tensor.reshape(-1, 32)
            scale = (rows.abs().amax(1) / 127).half()
            eight = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            right[name] = (eight.float() * scale.float()[:, None]).reshape(tensor.shape)
            block = torch.cat([scale[:, None].view(torch.uint8), eight.view(torch.uint8)], 1)
            own[name] = (8, tuple(tensor.shape), block.numpy().tobytes())
    file = write_gguf(tmp_path / "e.gguf", own, FACTS)
    read = open_checkpoint(file)
    assert "quantised (Q8_0)" in read.notes[0]
    embedding = right["token_embd.weight"]
    assert torch.equal(read.read("model.embed_tokens.weight"), embedding)
    part = read.read_part("model.embed_tokens.weight", 37, 101)
    assert torch.equal(part, embedding.reshape(-1)[37:101])
    query = turned(read.read("model.layers.0.self_attn.q_proj.weight"), HEADS)
    assert torch.equal(query, right["blk.0.attn_q.weight"])
    with pytest.warns(magmerge.MagmergeWarning, match="quantised"):
        result = magmerge.merge(base=file, experts=[model(2)], params={"lambda": 1})
    tensors = result.state_dict()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(tensors[name].float(), model(2)[name], rtol=2**-7)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_the_library_gives_the_numbers_of_other_formats(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    size, width = gguf.GGML_QUANT_SIZES[kind]
    import numpy as np

    content = np.random.default_rng(0).integers(0, 100, (6, width), dtype=np.uint8)
    right = torch.from_numpy(gguf.quants.dequantize(content, kind)).reshape(3, 2 * size)
    packed = {"output.weight": (int(kind), (3, 2 * size), content.tobytes())}
    read = open_checkpoint(write_gguf(tmp_path / "m.gguf", packed, FACTS))
    assert torch.equal(read.read("lm_head.weight"), right.float())
    part = read.read_part("lm_head.weight", size - 3, 3 * size + 1)
    assert torch.equal(part, right.reshape(-1)[size - 3 : 3 * size + 1])


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    file = write_gguf(tmp_path / "m.gguf", {"output.weight": (8, (1, 32), b"\0" * 34)}, FACTS)
    with pytest.raises(MissingExtraError) as caught:
        open_checkpoint(file)
    assert "magmerge[gguf]" in (caught.value.remedy or "")


def test_split_files_are_one_model_and_missing_ones_are_named(tmp_path: Path) -> None:
    state = model(0)
    tensors = list(stored(state).items())
    for number, part in enumerate((tensors[:9], tensors[9:]), start=1):
        facts = {**FACTS, "split.count": 2} if number == 1 else {"split.count": 2}
        write_gguf(tmp_path / f"m-{number:05d}-of-00002.gguf", dict(part), facts)
    read = open_checkpoint(tmp_path / "m-00001-of-00002.gguf")
    assert set(read.specs) == set(state)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="1 of its 2 files are missing: m-00002-of-00002"):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("tensors", "facts", "words"),
    [
        ({"blk.0.odd.weight": torch.ones(2)}, FACTS, "have no name in transformers: blk.0.odd"),
        ({"output.weight": torch.ones(2)}, {"general.architecture": "rwkv7"}, "'rwkv7' is none"),
        ({"output.weight": torch.ones(2)}, {}, "architecture None is none"),
        (
            {"blk.0.attn_q.weight": torch.ones(4, 4)},
            {"general.architecture": "llama"},
            "llama.attention.head_count is None",
        ),
        ({"output.weight": (5, (2, 2), b"")}, FACTS, "unknown format 5"),
        ({"output.weight": (0, (2**40, 2**40), b"")}, FACTS, "reaches beyond its end"),
        ({"output.weight": (8, (2, 5), b"0" * 99)}, FACTS, "has rows of 5 entries"),
    ],
)
def test_what_is_not_known_is_refused(
    tmp_path: Path, tensors: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, facts))


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data())
def test_whatever_bytes_there_are_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("m") / "m.gguf"
    write_gguf(file, {"output.weight": torch.ones(4, 32)}, {**FACTS, "general.alignment": 32})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with suppress(MagmergeError):
        read = open_checkpoint(file)
        for name in read.specs:
            read.read(name)


def test_it_is_converted_to_safetensors(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in model(0).items()}
    (tmp_path / "m").mkdir()
    write_gguf(tmp_path / "m" / "model-F16.gguf", stored(state), FACTS)
    done = magmerge_cli("convert", tmp_path / "m", tmp_path / "o.safetensors")
    assert done.code == 0, done.message
    written = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
