"""Adapters made out of models, against what PEFT and a merge make of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import magmerge
from magmerge.core.errors import (
    MagmergeError,
    MagmergeWarning,
    OutputError,
)
from tests.checkpoints.adapters.changes import LAYERS, changed, low_rank, near
from tests.checkpoints.test_lora import toy
from tests.conftest import State, random_state, tuned


def test_a_low_rank_change_comes_back_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = magmerge.extract(base=pair[0], model=pair[1], rank=3, out=tmp_path / "out")
    assert found.path == tmp_path / "out"
    assert not found.lost
    assert found.error < 1e-6
    merged = magmerge.merge(base=pair[0], experts=[found.path], method="average").state_dict()
    assert near(merged, magmerge.merge(experts=[pair[1]], method="average").state_dict())
    config = json.loads((found.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(pair[0])
    assert config["lora_alpha"] == config["r"] == 3


def test_errors_are_those_of_what_is_written(base: State, tmp_path: Path) -> None:
    model = tuned(base, 1)
    with pytest.warns(MagmergeWarning, match="3 changed tensors not in the adapter"):
        found = magmerge.extract(
            base=base, model=model, rank=4, dtype="bfloat16", out=tmp_path / "out"
        )
    assert found.dtype == "BF16"
    merged = magmerge.merge(base=base, experts=[tmp_path / "out"], method="average").state_dict()
    for one in found.modules:
        name = f"{one.name}.weight"
        change = (model[name] - base[name]).double()
        left = (model[name].double() - merged[name].double()).norm()
        assert one.norm == pytest.approx(float(change.norm()), rel=1e-6)
        assert one.error == pytest.approx(float(left / change.norm()), rel=1e-4)
        values = torch.linalg.svdvals(change.flatten(1))
        # bfloat16 rounds each entry of the factors by up to one part in 256.
        assert one.error <= 1.001 * float(values[4:].norm() / values.norm()) + 2**-8
    whole, left = (
        math.sqrt(sum(float((model[n].double() - other[n].double()).norm()) ** 2 for n in base))
        for other in (base, merged)
    )
    assert found.norm == pytest.approx(whole, rel=1e-6)
    assert found.error == pytest.approx(left / whole, rel=1e-4)


def test_what_is_lost_is_listed_with_its_norm_and_counted(base: State, model: State) -> None:
    model["layers.0.norm.weight"] += 0.5
    model["lm_head.weight"] *= 1.25
    with pytest.warns(MagmergeWarning, match=re.escape("lm_head.weight (an output head")):
        found = magmerge.extract(base=base, model=model, rank=3)
    assert {one.name: one.norm for one in found.lost} == {
        name: pytest.approx(float((model[name] - base[name]).double().norm()))
        for name in ("layers.0.norm.weight", "lm_head.weight")
    }
    assert found.error == pytest.approx(
        math.hypot(*(one.norm for one in found.lost)) / found.norm, rel=1e-6
    )
    assert len(found.warnings) == 1


def test_unchanged_and_ignored_tensors_are_left_out(base: State) -> None:
    model = changed(base, ("layers.0.attn.weight", "lm_head.weight"))
    found = magmerge.extract(base=base, model=model, rank=3, ignore="lm_head.*")
    assert [one.name for one in found.modules] == ["layers.0.attn"]
    assert not found.lost
    assert found.error < 1e-6


def test_ignored_tensors_may_differ_in_shape_or_be_missing(base: State, model: State) -> None:
    model["embed_tokens.weight"] = torch.ones(13, 24)
    del model["lm_head.weight"]
    found = magmerge.extract(base=base, model=model, rank=3, ignore=["embed_tokens.*", "lm_head.*"])
    assert len(found.modules) == 3
    assert found.error < 1e-6


def test_targets_adapt_what_they_name_and_nothing_else(base: State, tmp_path: Path) -> None:
    names = ("embed_tokens.weight", "lm_head.weight", "layers.0.mlp.weight")
    model = changed(base, names)
    with pytest.warns(MagmergeWarning, match="no --target"):
        found = magmerge.extract(
            base=base,
            model=model,
            rank=3,
            targets=["embed_tokens", "lm_head.weight"],
            out=tmp_path / "out",
        )
    assert {one.name for one in found.modules} == {"embed_tokens", "lm_head"}
    assert [one.name for one in found.lost] == ["layers.0.mlp.weight"]
    merged = magmerge.merge(base=base, experts=[tmp_path / "out"], method="average").state_dict()
    assert near({n: merged[n] for n in names[:2]}, {n: model[n] for n in names[:2]})


def test_auto_takes_the_least_rank_that_holds_the_energy(base: State) -> None:
    model = tuned(base, 2)
    del model["lm_head.weight"], model["embed_tokens.weight"], model["layers.0.norm.weight"]
    small = {name: base[name] for name in model}
    found = magmerge.extract(base=small, model=model, rank="auto", energy=0.8)
    for one in found.modules:
        change = (model[f"{one.name}.weight"] - base[f"{one.name}.weight"]).double().flatten(1)
        squares = torch.linalg.svdvals(change).square()
        held = squares.cumsum(0) / squares.sum()
        assert one.rank == int((held < 0.8).sum()) + 1
        assert 1 - one.error**2 >= 0.8 - 1e-6
    assert len({one.rank for one in found.modules}) > 1
    exact = magmerge.extract(base=small, model=changed(small, rank=2), rank="auto", energy=1.0)
    assert {one.rank for one in exact.modules} == {2}


def test_a_rank_beyond_a_module_s_own_is_its_own(base: State, model: State) -> None:
    found = magmerge.extract(base=base, model=model, rank=1000)
    assert {one.rank for one in found.modules} == {3}


def test_bits_do_not_depend_on_threads_or_memory(
    pair: tuple[Path, Path], base: State, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(7)
    wide = {f"w.{i}.weight": torch.randn(300, 280, generator=generator) for i in range(3)}
    model = {
        name: tensor + torch.randn(300, 280, generator=generator) for name, tensor in wide.items()
    }
    outputs = []
    for threads, memory in ((1, "2GB"), (3, "500MB")):
        out = tmp_path / f"out{threads}"
        magmerge.extract(base=wide, model=model, out=out, threads=threads, memory=memory)
        outputs.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert outputs[0] == outputs[1]


def peft_state(folder: Path, base: nn.Module) -> State:
    return PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()


def test_peft_and_magmerge_apply_layers_of_every_kind_alike(tmp_path: Path) -> None:
    names = ("embed.weight", "first.weight", "turned.weight", "conv.weight", "head.weight")
    base = toy()
    state = changed(base.state_dict(), names, rank=2)
    model = toy()
    model.load_state_dict(state)
    targets = [name.removesuffix(".weight") for name in names]
    found = magmerge.extract(base=base, model=model, rank=2, targets=targets, out=tmp_path / "a")
    assert found.error < 1e-6
    assert near(peft_state(tmp_path / "a", toy()), state)
    merged = magmerge.merge(base=base, experts=[tmp_path / "a"], method="average").state_dict()
    assert near(merged, state)


def test_gpt2_s_turned_layers_give_the_same_outputs_in_peft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    base = GPT2LMHeadModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    model = GPT2LMHeadModel(config).eval()
    model.load_state_dict(base.state_dict())
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
            parameter.data += low_rank(parameter.shape, 4, seed, 0.05).float()
    model.save_pretrained(tmp_path / "model")
    found = magmerge.extract(
        base=tmp_path / "base", model=tmp_path / "model", rank=4, out=tmp_path / "adapter"
    )
    assert len(found.modules) == 8
    assert found.error < 1e-6
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] is True
    ids = torch.arange(12).unsqueeze(0)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, model(ids).logits, atol=1e-5)
    merged = magmerge.merge(
        base=tmp_path / "base", experts=[tmp_path / "adapter"], method="average"
    ).state_dict()
    whole = magmerge.open_checkpoint(tmp_path / "model")
    assert near(merged, {name: whole.read(name) for name in whole.specs})


def test_an_adapter_may_be_extracted_of_an_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    magmerge.extract(base=pair[0], model=pair[1], rank=3, out=tmp_path / "three")
    again = magmerge.extract(base=pair[0], model=tmp_path / "three", rank=2)
    straight = magmerge.extract(base=pair[0], model=pair[1], rank=2)
    assert again.error == pytest.approx(straight.error, rel=1e-4)


def test_a_wide_model_is_factored_in_float64() -> None:
    base = {name: tensor.double() for name, tensor in random_state(0).items()}
    model = {name: tensor.clone() for name, tensor in base.items()}
    for seed, name in enumerate(LAYERS):
        model[name] += low_rank(model[name].shape, 2, seed)
    found = magmerge.extract(base=base, model=model, rank=2)
    assert found.dtype == "F64"
    assert found.error < 1e-12


def test_provenance_names_both_models_and_what_is_lost(
    pair: tuple[Path, Path], model: State, tmp_path: Path
) -> None:
    model["layers.0.norm.weight"] += 1
    save_file(model, pair[1] / "model.safetensors")
    with pytest.warns(MagmergeWarning):
        found = magmerge.extract(base=pair[0], model=pair[1], rank=2, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert [one["role"] for one in record["inputs"]] == ["base", "expert"]
    assert record["recipe"]["output"]["rank"] == 2
    assert record["error"] == found.error
    assert [one["name"] for one in record["lost"]] == ["layers.0.norm.weight"]
    assert len(record["modules"]) == 3
    with pytest.raises(MagmergeError, match="has no report"):
        magmerge.write_report(tmp_path / "out")


def test_a_result_in_memory_is_saved_later(base: State, model: State, tmp_path: Path) -> None:
    found = magmerge.extract(base=base, model=model, rank=3)
    assert found.path is None
    found.save(tmp_path / "out")
    with pytest.raises(OutputError, match="--yes"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", overwrite=True)
    merged = magmerge.merge(base=base, experts=[tmp_path / "out"], method="average").state_dict()
    assert near(merged, model)
    assert len(repr(found)) < 5000
