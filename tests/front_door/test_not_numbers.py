"""Entries that are no weights: quantised models are refused, changed integers are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeWarning, StructureError
from tests.conftest import CommandLine, State, random_state, tuned

LAYERS = ("model.layers.0.q_proj", "model.layers.0.o_proj")
SHAPES = {
    "model.embed_tokens.weight": (12, 16),
    **{f"{name}.weight": (16, 16) for name in LAYERS},
    "model.norm.weight": (16,),
}


def bnb_8(name: str, weight: Tensor) -> State:
    scale = weight.abs().amax(1)
    return {f"{name}.weight": (weight / scale[:, None] * 127).to(torch.int8), f"{name}.SCB": scale}


def bnb_4(name: str, weight: Tensor) -> State:
    own = f"{name}.weight"
    return {
        own: torch.randint(0, 255, (weight.numel() // 2, 1)).to(torch.uint8),
        f"{own}.absmax": torch.rand(weight.numel() // 64 + 1),
        f"{own}.quant_map": torch.linspace(-1, 1, 16),
        f"{own}.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    }


def gptq(name: str, weight: Tensor) -> State:
    return {
        f"{name}.qweight": torch.randint(0, 1000, (2, 16), dtype=torch.int32),
        f"{name}.qzeros": torch.zeros(1, 2, dtype=torch.int32),
        f"{name}.scales": (weight.abs().amax(1) / 7).half()[None],
        f"{name}.g_idx": torch.zeros(16, dtype=torch.int32),
    }


def packed(name: str, weight: Tensor) -> State:
    """compressed-tensors, 4 bits."""
    return {
        f"{name}.weight_packed": torch.zeros(16, 2, dtype=torch.int32),
        f"{name}.weight_scale": weight.abs().amax(1, keepdim=True),
        f"{name}.weight_shape": torch.tensor([16, 16]),
    }


def mxfp4(name: str, weight: Tensor) -> State:
    return {
        f"{name}_blocks": torch.zeros(16, 1, 8, dtype=torch.uint8),
        f"{name}_scales": torch.zeros(16, 1, dtype=torch.uint8),
    }


def mlx(name: str, weight: Tensor) -> State:
    return {
        f"{name}.weight": torch.zeros(16, 2).to(torch.uint32),
        f"{name}.scales": torch.ones(16, 1).half(),
        f"{name}.biases": torch.zeros(16, 1).half(),
    }


def fp8(name: str, weight: Tensor) -> State:
    """With a scale that is in no known form."""
    own = f"{name}.weight"
    return {own: weight.to(torch.float8_e4m3fn), f"{own}_scale": torch.ones(3, 5)}


def quanto(name: str, weight: Tensor) -> State:
    own = f"{name}.weight"
    return {f"{own}._data": weight.to(torch.int8), f"{own}._scale": weight.abs().amax(1)}


def exl3(name: str, weight: Tensor) -> State:
    return {
        f"{name}.trellis": torch.zeros(1, 1, 64, dtype=torch.int16),
        f"{name}.suh": torch.ones(16).half(),
        f"{name}.svh": torch.ones(16).half(),
    }


def marlin(name: str, weight: Tensor) -> State:
    return {
        f"{name}.B": torch.zeros(1, 32, dtype=torch.int32),
        f"{name}.s": torch.ones(1, 16).half(),
    }


def flat(name: str, weight: Tensor) -> State:
    own = f"{name}.weight"
    return {own: torch.zeros(128, dtype=torch.uint8), f"{own}.absmax": torch.ones(4)}


KINDS = [exl3, marlin, flat, bnb_8, bnb_4, gptq, packed, mxfp4, mlx, fp8, quanto]


def quantised(kind: Callable[[str, Tensor], State], state: State) -> State:
    found = {name: t for name, t in state.items() if name.removesuffix(".weight") not in LAYERS}
    for name in LAYERS:
        found |= kind(name, state[f"{name}.weight"])
    return found


def plain(seed: int | None) -> State:
    base = random_state(0, SHAPES)
    return base if seed is None else tuned(base, seed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("form", ["memory", "file", "folder", "pickle"])
@pytest.mark.parametrize("who", ["all", "base", "expert"])
def test_a_quantised_model_without_a_config_is_refused(
    tmp_path: Path, kind: Callable[[str, Tensor], State], form: str, who: str
) -> None:
    torch.manual_seed(0)

    def model(name: str, state: State) -> object:
        if form == "memory":
            return state
        if form == "file":
            save_file(state, tmp_path / f"{name}.safetensors")
            return tmp_path / f"{name}.safetensors"
        if form == "pickle":
            torch.save(state, tmp_path / f"{name}.pt")
            return tmp_path / f"{name}.pt"
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        return tmp_path / name

    states = {"base": plain(None), "one": plain(1), "two": plain(2)}
    chosen = {"all": tuple(states), "base": ("base",), "expert": ("two",)}[who]
    states |= {name: quantised(kind, states[name]) for name in chosen}
    made = {name: model(name, state) for name, state in states.items()}
    with pytest.raises(StructureError, match="is quantised") as caught:
        magmerge.merge(base=made["base"], experts=[made["one"], made["two"]], out=tmp_path / "out")
    assert len(caught.value.faults) == len(chosen)
    assert "quantised from" in caught.value.remedy
    assert "--ignore" not in caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_quantised_base_is_not_blamed_on_the_adapter(
    magmerge_cli: CommandLine, tmp_path: Path, kind: Callable[[str, Tensor], State]
) -> None:
    from tests.checkpoints.adapters.files import write_adapter

    save_file(quantised(kind, plain(None)), tmp_path / "base.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter / "adapter_model.safetensors", {"model.layers.0.q_proj": (16, 16)})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = magmerge_cli(
        "merge", "--base", tmp_path / "base.safetensors", "--expert", adapter, tmp_path / "out"
    )
    assert found.code == 1
    assert f"{tmp_path / 'base.safetensors'} is quantised" in found.message
    assert "adapter is quantised" not in found.message
    assert "--base" not in found.message
    assert "--ignore" not in found.message
    # The remedy: the model that it was quantised from.
    save_file(plain(None), tmp_path / "source.safetensors")
    found = magmerge_cli(
        "merge", "--base", tmp_path / "source.safetensors", "--expert", adapter, tmp_path / "out"
    )
    assert found.code == 0


def test_models_with_integers_of_other_kinds_are_merged() -> None:
    """Indices, masks and layer scales are no signs of quantisation."""
    others = {
        "attn.relative_position_index": torch.arange(16).reshape(4, 4),
        "attn.logit_scale": torch.ones(3, 1, 1),
        "attn.scales": torch.ones(4),
        "embeddings.position_ids": torch.arange(12)[None],
        "mask": torch.ones(3, 3, dtype=torch.bool),
        "blocks": torch.ones(2, 2),
        "vq.codes": torch.arange(4).reshape(2, 2),
        "anchors": torch.arange(4).reshape(2, 2),
        "anchors_scale": torch.ones(2),
        "norm.absmax": torch.ones(3),
        "g_idx": torch.arange(3),
    }
    base = {**plain(None), **others}
    result = magmerge.merge(base=base, experts=[tuned(base, 1)]).state_dict()
    assert torch.equal(
        result["attn.relative_position_index"], others["attn.relative_position_index"]
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.arange(4), torch.arange(4) + 1),
        (torch.tensor(2**60), torch.tensor(2**60 + 1)),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.arange(4), torch.arange(5)),
    ],
    ids=["integers", "large", "complex", "bool", "longer"],
)
def test_integers_that_an_expert_changed_are_named(
    magmerge_cli: CommandLine, tmp_path: Path, before: Tensor, after: Tensor
) -> None:
    base, expert = {**plain(None), "steps.table": before}, {**plain(1), "steps.table": after}
    save_file(base, tmp_path / "b.safetensors")
    save_file(expert, tmp_path / "e.safetensors")
    out = tmp_path / "o.safetensors"
    models = ["--base", tmp_path / "b.safetensors", "--expert", tmp_path / "e.safetensors"]
    found = magmerge_cli("merge", *models, out)
    assert found.code == 0
    assert "e.safetensors has other values than" in found.message
    assert "steps.table" in found.message
    record = json.loads((tmp_path / "o.magmerge.json").read_text())
    assert any("steps.table" in warning for warning in record["warnings"])
    with pytest.warns(MagmergeWarning, match=r"steps\.table"):
        magmerge.extract(base=base, model=expert, rank=1)


def test_equal_integers_and_counters_are_not() -> None:
    norm = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3)}
    base = {**plain(None), **norm, "n": torch.arange(3), "bn.num_batches_tracked": torch.tensor(3)}
    expert = {**tuned(base, 1), "bn.num_batches_tracked": torch.tensor(9)}
    magmerge.merge(base=base, experts=[expert])
