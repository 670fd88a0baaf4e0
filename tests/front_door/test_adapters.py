"""Adapters on disk that once gave a wrong model in silence: right now, or refused for a reason."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import StructureError
from tests.conftest import CommandLine
from tests.front_door.models import TIED, llama, with_lora

IDS = torch.arange(8)[None]


def test_what_was_trained_beside_an_adapter_is_merged_too(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    base, run = llama(), tmp_path / "run"
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    state["model.mm_projector.0.weight"] = torch.randn(16, 12)
    state["model.mm_projector.0.bias"] = torch.randn(16)
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    base.config.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 1)
    wrapped.save_pretrained(run)
    projector = {
        "model.mm_projector.0.weight": torch.randn(16, 12),
        "model.mm_projector.0.bias": torch.randn(16),
    }
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    torch.save(prefixed, run / "non_lora_trainables.bin")
    torch.save({"step": 3}, run / "optimizer.pt")
    call = ["merge", "--base", tmp_path / "base", "--expert", run, "--set", "lambda=1"]
    found = magmerge_cli(*call, tmp_path / "out")
    assert found.code == 0, found.err
    assert "not read" not in found.message
    expected = {**wrapped.merge_and_unload().state_dict(), **projector}
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert set(merged) == set(state)
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    (expert,) = [one for one in record["inputs"] if one["role"] == "expert"]
    assert "non_lora_trainables.bin" in expert["files"]
    other = {f"module.{name}": tensor for name, tensor in prefixed.items()}
    torch.save(other, run / "non_lora_trainables.bin")
    assert magmerge_cli(*call, tmp_path / "out", "--yes").code == 0
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    torch.save({}, run / "non_lora_trainables.bin")
    assert magmerge_cli(*call, tmp_path / "out", "--yes").code == 0
    (run / "mm_projector.bin").write_bytes(b"")
    found = magmerge_cli(*call, tmp_path / "out", "--yes")
    assert f"{run / 'mm_projector.bin'} lies beside the adapter and is not read" in found.message


def test_what_was_trained_beside_an_adapter_and_is_not_in_the_base_is_a_fault(
    tmp_path: Path,
) -> None:
    base, run = llama(), tmp_path / "run"
    base.save_pretrained(tmp_path / "base")
    with_lora(base, 1).save_pretrained(run)
    projector = {"base_model.model.model.mm_projector.0.weight": torch.randn(16, 12)}
    torch.save(projector, run / "non_lora_trainables.bin")
    with pytest.raises(StructureError, match=r"mm_projector\.0\.weight"):
        magmerge.merge(base=tmp_path / "base", experts=[run])


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("saved", [True, False], ids=["with its embeddings", "alone"])
def test_an_adapter_of_one_of_two_tied_matrices_unties_the_result(
    magmerge_cli: CommandLine, tmp_path: Path, kind: str, saved: bool
) -> None:
    from transformers import AutoModelForCausalLM

    base = llama(tie=True)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 3, **TIED[kind]).eval()
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved)
    call = ["--expert", tmp_path / "adapter", "--set", "lambda=1"]
    found = magmerge_cli("merge", "--base", tmp_path / "base", *call, tmp_path / "out")
    assert found.code == 0, found.err
    assert "tie_word_embeddings false" in found.message
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert merged.config.tie_word_embeddings is False
    with torch.no_grad():
        assert torch.allclose(merged(IDS).logits, wrapped(IDS).logits, atol=1e-6)


def test_a_head_that_is_a_scaled_embedding_is_refused_and_the_remedy_helps(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    base = T5ForConditionalGeneration(config)
    base.save_pretrained(tmp_path / "base")
    call = ["merge", "--base", tmp_path / "base", "--set", "lambda=1", tmp_path / "out"]
    for targets in (["q", "lm_head"], ["q"]):
        wrapped = with_lora(base, 3, target_modules=targets).eval()
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        found = magmerge_cli(*call, "--expert", tmp_path / "adapter")
        assert found.code == ("lm_head" in targets), found.err
        assert "train the adapter without the embedding and the head" in found.message or (
            "lm_head" not in targets
        )
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        told = [model(input_ids=IDS, decoder_input_ids=IDS).logits for model in (merged, wrapped)]
    assert torch.allclose(*told, atol=1e-5)


def test_embeddings_that_are_saved_with_their_factors_count_once(tmp_path: Path) -> None:
    """PEFT saves an adapted embedding's own weight too, which may have been changed besides."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 3, target_modules=["q_proj", "embed_tokens"])
    wrapped.get_input_embeddings().base_layer.weight.data += 0.5
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_table_of_positions_is_no_head(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    base = GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = with_lora(base, 1, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()["transformer.wpe.weight"]
    assert torch.allclose(merged["transformer.wpe.weight"], expected, atol=1e-6)


def test_an_adapter_of_other_layers_on_a_tied_base_is_merged(tmp_path: Path) -> None:
    base = llama(tie=True)
    base.save_pretrained(tmp_path / "base")
    wrapped = with_lora(base, 3).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    result = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], params={"lambda": 1.0}
    ).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    for name, tensor in result.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6)
