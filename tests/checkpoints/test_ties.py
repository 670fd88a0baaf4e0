"""Tensors that are one in a model, stored once, twice or in shared memory: merged as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from tests.front_door.models import llama, trained

WAYS = ("once", "copies", "shared")
"""How a tied matrix is stored: under one name, under each name anew, under each in one storage."""


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def saved(model: Any, folder: Path, way: str) -> Path:
    """The model as different programs write its tied tensors."""
    model.tie_weights()
    if way == "once":
        model.save_pretrained(folder)
        return folder
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if way == "copies":
        save_file({name: t.clone() for name, t in state.items()}, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("build", [t5, lambda: llama(tie=True)], ids=["t5", "llama"])
@pytest.mark.parametrize("of_base", WAYS)
@pytest.mark.parametrize("of_expert", WAYS)
@pytest.mark.filterwarnings("ignore::magmerge.MagmergeWarning")
def test_a_tie_is_one_however_it_is_stored(
    tmp_path: Path, build: Any, of_base: str, of_expert: str
) -> None:
    base = build()
    experts = [trained(base, 1), trained(base, 2)]
    paths = [
        saved(experts[0], tmp_path / "e1", of_expert),
        saved(experts[1], tmp_path / "e2", "once"),
    ]
    out = tmp_path / "out"
    magmerge.merge(
        base=saved(base, tmp_path / "base", of_base), experts=paths, out=out,
        params={"lambda": 0.5}, method="task_arithmetic",
    )  # fmt: skip
    merged = type(base).from_pretrained(out)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    own = [dict(model.named_parameters()) for model in (base, *experts)]
    for name, tensor in merged.named_parameters():
        first, second, third = (state[name].double() for state in own)
        expected = first + 0.5 * (second - first + third - first)
        assert torch.allclose(tensor.double(), expected, atol=1e-6), name
    # What the base stores twice is written twice, and alike.
    stored = load_file(out / "model.safetensors")
    names = [name for name in stored if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert len({tuple(stored[name].flatten().tolist()) for name in names}) <= 1


@pytest.mark.parametrize("of_base", ["once", "shared"])
def test_one_expert_with_a_head_of_its_own_unties_the_result(tmp_path: Path, of_base: str) -> None:
    from transformers import LlamaForCausalLM

    base, tied = llama(tie=True), trained(llama(tie=True), 1)
    apart = llama(1)
    apart.load_state_dict(base.state_dict())
    apart = trained(apart, 2)
    paths = [saved(tied, tmp_path / "tied", "once"), tmp_path / "apart"]
    apart.save_pretrained(paths[1])
    with pytest.warns(magmerge.MagmergeWarning, match="tie_word_embeddings false"):
        magmerge.merge(
            base=saved(base, tmp_path / "base", of_base), experts=paths,
            out=tmp_path / "out", params={"lambda": 0.5},
        )  # fmt: skip
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in merged.items():
        first, second, third = (m.state_dict()[name].double() for m in (base, tied, apart))
        expected = first + 0.5 * (second - first + third - first)
        assert torch.allclose(tensor.double(), expected, atol=1e-6), name


def test_an_untied_base_has_experts_whose_head_is_their_embedding(tmp_path: Path) -> None:
    tied, apart = trained(llama(tie=True), 1), llama(2)
    paths = [apart.save_pretrained(tmp_path / "base"), saved(tied, tmp_path / "tied", "once")]
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[paths[1]], params={"lambda": 1.0}
    ).state_dict()
    assert torch.allclose(merged["lm_head.weight"], tied.get_input_embeddings().weight, atol=1e-6)


def test_a_head_that_a_model_without_configuration_lacks_is_a_fault(tmp_path: Path) -> None:
    save_file(
        {n: t for n, t in llama(3).state_dict().items() if n != "lm_head.weight"},
        tmp_path / "expert.safetensors",
    )
    with pytest.raises(magmerge.MagmergeError, match=r"lm_head\.weight is missing"):
        magmerge.merge(base=llama(2), experts=[tmp_path / "expert.safetensors"])


def test_calibrating_a_merge_that_is_untied(tmp_path: Path) -> None:
    base, expert = llama(tie=True), trained(llama(tie=True), 1)
    merged = llama(1)
    merged.load_state_dict(expert.state_dict())
    merged = trained(merged, 2)
    merged.save_pretrained(tmp_path / "merged")
    for name, model in (("base", base), ("expert", expert)):
        saved(model, tmp_path / name, "once")
    result = magmerge.calibrate(
        tmp_path / "merged", base=tmp_path / "base", experts=[tmp_path / "expert"],
        method="wsc", out=tmp_path / "out",
    )  # fmt: skip
    assert torch.equal(result.state_dict()["lm_head.weight"], merged.state_dict()["lm_head.weight"])
