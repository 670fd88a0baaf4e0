"""Adapters that PEFT itself wrote, against what PEFT itself makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.experts import open_expert
from magmerge.core.errors import AdapterError, MagmergeError, StructureError
from tests.conftest import State
from tests.quick import examples

REAL = Path(__file__).parents[3] / "shared" / "data" / "lora" / "peft-bert"


class Toy(nn.Module):
    """One layer of each kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.first = nn.Linear(6, 8)
        self.turned = Conv1D(5, 8)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.turned(self.first(self.embed(x))))


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def write_adapter(folder: Path, **options: object) -> State:
    """Trains nothing: random A and B. Gives the state of the base with the adapter merged in."""
    targets = options.pop("target_modules", ["embed", "first", "turned", "conv"])
    config = LoraConfig(target_modules=targets, **options)
    model = get_peft_model(toy(), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


def check(folder: Path, merged: State) -> None:
    base = open_checkpoint(toy())
    expert = open_expert("toy", folder, base)
    assert not expert.faults
    for name in base.specs:
        own = base.read(name)
        assert torch.allclose(expert.weight(name, own), merged[name], atol=1e-5), name
        changed = not torch.equal(merged[name], own)
        assert (name not in expert.untouched) == changed


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 5},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 2, "rank_pattern": {"first": 5}, "alpha_pattern": {"first": 7, "conv": 3}},
        {"r": 2, "lora_alpha": 2, "modules_to_save": ["head"]},
        {"r": 2, "target_modules": ["turned"], "fan_in_fan_out": True},
    ],
    ids=["plain", "rank-stabilised", "patterns", "modules-to-save", "fan-in-fan-out"],
)
def test_equals_what_peft_merges(tmp_path: Path, options: dict) -> None:
    check(tmp_path / "a", write_adapter(tmp_path / "a", **options))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", r=2, target_modules=["first"])
    return tmp_path / "a"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[State], State]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"layer_replication": [[0, 1]]}, "copies layers"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": {"(": 1}}, "regular expression"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base itself"),
    ],
)
def test_other_adapters_are_refused_with_the_reason(
    adapter: Path, changes: dict, message: str
) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(MagmergeError, match=message):
        open_expert("a", adapter, open_checkpoint(toy()))


def test_half_a_pair_is_refused(adapter: Path) -> None:
    edit_tensors(adapter, lambda state: {n: t for n, t in state.items() if "lora_A" in n})
    with pytest.raises(AdapterError, match="half of a pair is missing for first"):
        open_expert("a", adapter, open_checkpoint(toy()))


def test_rank_zero_is_refused(adapter: Path) -> None:
    edit_tensors(
        adapter, lambda state: {n: t[:0] if "_A" in n else t[:, :0] for n, t in state.items()}
    )
    with pytest.raises(AdapterError, match="rank 0"):
        open_expert("a", adapter, open_checkpoint(toy()))


def test_modules_and_shapes_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", r=2, modules_to_save=["head"])
    base = toy().state_dict()
    base["first.weight"] = torch.zeros(8, 7)
    for name in ("turned.weight", "head.weight"):
        del base[name]
    with pytest.raises(StructureError) as caught:
        magmerge.plan(base=base, experts=[tmp_path / "a"])
    message = str(caught.value)
    assert "first.weight: the task vector" in message
    assert "turned.weight" in message
    assert "head.weight" in message
    assert "the base that this adapter was trained on" in message


def test_an_adapter_for_the_wrapped_model_fits_the_bare_one(adapter: Path) -> None:
    edit_tensors(
        adapter,
        lambda state: {n.replace("model.first", "model.bert.first"): t for n, t in state.items()},
    )
    expert = open_expert("a", adapter, open_checkpoint(toy()))
    assert "first.weight" not in expert.untouched


def test_an_adapter_on_a_tied_head_changes_the_shared_tensor(adapter: Path) -> None:
    shared = torch.zeros(8, 6)
    base = {"embed.weight": shared, "first.weight": shared}
    result = magmerge.merge(base=base, experts=[adapter], method="average").state_dict()
    assert torch.equal(result["embed.weight"], result["first.weight"])
    assert result["embed.weight"].abs().sum() > 0


def test_square_layers_are_turned_by_what_they_are_not_by_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {"tok": nn.Embedding(6, 6), "time_embed": nn.Linear(6, 6)}
    bare = nn.ModuleDict(layers)
    base = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    config = LoraConfig(r=2, target_modules=["tok", "time_embed"])
    model = get_peft_model(bare, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "a")
    merged = model.merge_and_unload().state_dict()
    found = magmerge.merge(base=base, experts=[tmp_path / "a"], method="average").state_dict()
    assert all(torch.allclose(found[name], merged[name], atol=1e-5) for name in base)


def test_two_task_vectors_for_one_tensor_are_a_fault(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", r=2, target_modules=["first", "head"])
    edit_tensors(
        tmp_path / "a", lambda state: {n.replace("head", "second"): t for n, t in state.items()}
    )
    edit_tensors(
        tmp_path / "a",
        lambda state: {n: (torch.ones(2, 6) if "_A" in n else torch.ones(8, 2)) for n in state},
    )
    shared = torch.zeros(8, 6)
    with pytest.raises(StructureError, match="two modules"):
        magmerge.plan(
            base={"first.weight": shared, "second.weight": shared}, experts=[tmp_path / "a"]
        )


def test_without_a_base_an_adapter_is_refused(adapter: Path) -> None:
    with pytest.raises(MagmergeError, match="no base is given"):
        open_expert("a", adapter, None)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real adapter is not beside this checkout")
def test_reads_a_real_adapter() -> None:
    shapes = {
        f"encoder.layer.{i}.attention.self.{part}.weight": torch.zeros(768, 768)
        for i in range(12)
        for part in ("query", "key", "value")
    }
    ignored = ["*classifier*"]
    result = magmerge.merge(base=shapes, experts=[REAL], method="average", ignore=ignored)
    changed = {name for name, tensor in result.state_dict().items() if bool(tensor.any())}
    assert changed == {name for name in shapes if "key" not in name}


@settings(
    deadline=None,
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    config=st.dictionaries(
        st.sampled_from(
            ["r", "lora_alpha", "peft_type", "rank_pattern", "alpha_pattern", "fan_in_fan_out"]
        ),
        st.none()
        | st.integers()
        | st.floats()
        | st.text(max_size=4)
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=2)),
    )
)
def test_fuzz_any_configuration_is_read_or_refused(adapter: Path, config: dict) -> None:
    path = adapter / "adapter_config.json"
    sound = path.read_text()
    edit_config(adapter, **config)
    try:
        open_expert("a", adapter, open_checkpoint(toy()))
    except MagmergeError as error:
        assert str(error)
    finally:
        path.write_text(sound)


def test_an_adapter_and_the_model_it_makes_are_the_same_expert_to_ties(tmp_path: Path) -> None:
    targets = {"a": ["first"], "b": ["conv", "turned"]}
    whole = [write_adapter(tmp_path / name, r=2, target_modules=t) for name, t in targets.items()]
    base = toy().state_dict()

    def changed(experts: list) -> dict[str, int]:
        merged = magmerge.merge(
            base=toy(), experts=experts, method="ties", params={"density": 0.1}
        ).state_dict()
        return {name: int((merged[name] != tensor).sum()) for name, tensor in base.items()}

    found, expected = changed([tmp_path / name for name in targets]), changed(whole)
    assert 0 < sum(expected.values()) < 60
    assert found == expected
