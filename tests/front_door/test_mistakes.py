"""Inputs that people really give, each of which once went wrong in silence or with a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    NonFiniteError,
    OutputError,
    ParameterError,
    StructureError,
)
from magmerge.linalg.selection import kept_count
from tests.checkpoints.adapters.standins import factors_of, folder_of
from tests.conftest import State


def test_one_pattern_may_be_given_as_text(base: State, experts: list[State]) -> None:
    result = magmerge.merge(base=base, experts=experts, ignore="layers.0.mlp.*").state_dict()
    assert not torch.equal(result["lm_head.weight"], base["lm_head.weight"])
    assert torch.equal(result["layers.0.mlp.weight"], base["layers.0.mlp.weight"])


@pytest.mark.parametrize("more", [{"ignore": "nosuch.*"}, {"skip": "*.mpl.*", "calibrate": "wsc"}])
def test_a_pattern_that_matches_nothing_is_a_fault(
    base: State, experts: list[State], more: dict
) -> None:
    with pytest.raises(StructureError, match="matches no tensor"):
        magmerge.plan(base=base, experts=experts, **more)


def test_a_calibration_of_nothing_is_a_mistake(base: State, experts: list[State]) -> None:
    with pytest.raises(ParameterError, match="no tensor of this model is calibrated"):
        magmerge.plan(base=base, experts=experts, calibrate="wsc", skip="*")
    with pytest.raises(ParameterError, match="none is asked for"):
        magmerge.plan(base=base, experts=experts, gate="off")


def test_ignoring_one_of_two_tied_tensors_is_a_fault() -> None:
    shared, other = torch.zeros(3, 2), torch.ones(3, 2)
    base, expert = {"a": shared, "b": shared}, {"a": other, "b": other}
    with pytest.raises(StructureError, match="shares its memory"):
        magmerge.plan(base=base, experts=[expert], ignore="b")


def test_a_result_in_memory_shares_nothing_with_its_base(base: State, experts: list[State]) -> None:
    base["n"] = torch.tensor(3)
    for expert in experts:
        expert["n"] = torch.tensor(3)
    result = magmerge.merge(base=base, experts=experts, ignore="lm_head.weight").state_dict()
    for tensor in result.values():
        tensor.zero_()
    assert base["n"] == 3
    assert base["lm_head.weight"].any()


def test_a_result_that_is_not_finite_is_an_error(base: State, experts: list[State]) -> None:
    with pytest.raises(NonFiniteError, match="too large for float32"):
        magmerge.merge(base=base, experts=experts, params={"lambda": 1e39})


def test_a_bad_base_is_not_kept_but_named(base: State, experts: list[State]) -> None:
    base["layers.0.norm.weight"][0] = float("inf")
    with pytest.raises(NonFiniteError) as caught:
        magmerge.merge(base=base, experts=experts)
    assert "--ignore" not in caught.value.remedy
    with pytest.warns(magmerge.MagmergeWarning, match="carried over with 0 NaN and 1 infinite"):
        result = magmerge.merge(base=base, experts=experts, ignore="layers.0.norm.weight")
    assert any("layers.0.norm.weight" in note for note in result.warnings)


def test_a_carried_value_too_large_for_the_output_is_an_error(
    base: State, experts: list[State]
) -> None:
    base["layers.0.norm.weight"][0] = 1e6
    with pytest.raises(NonFiniteError, match="too large for float16"):
        magmerge.merge(base=base, experts=experts, ignore="layers.0.norm.weight", dtype="fp16")


def test_every_warning_is_in_the_result_and_its_record(
    base: State, experts: list[State], tmp_path: Path
) -> None:
    experts[0] = {name: tensor.half() for name, tensor in experts[0].items()}
    with pytest.warns(magmerge.MagmergeWarning):
        result = magmerge.merge(base=base, experts=experts, out=tmp_path / "out")
    assert ["no config.json" in note for note in result.warnings] == [True, False]
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert record["warnings"] == list(result.warnings)


@pytest.mark.parametrize(("density", "count"), [(0.07, 7), (0.55, 55), (0.2, 20), (0.001, 1)])
def test_densities_are_not_rounded_up_by_their_binary_form(density: float, count: int) -> None:
    assert kept_count(density, 100) == count


def test_the_model_scope_is_exact_for_float64_models() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("a.weight", "b.weight", "c.weight")
    noise = torch.rand(3, 50, 20, generator=generator, dtype=torch.float64) * 1e-6
    base = {name: torch.zeros(50, 20, dtype=torch.float64) for name in names}
    expert = {name: 1 + noise[i] for i, name in enumerate(names)}
    result = magmerge.merge(base=base, experts=[expert], method="ties", params={"scope": "model"})
    assert sum(int((t != 0).sum()) for t in result.state_dict().values()) == 600


def test_a_calibrator_leaves_kinds_alone_that_it_does_not_act_on(
    base: State, experts: list[State]
) -> None:
    from magmerge.core import registry

    @magmerge.register_calibrator(
        "embeddings_for_test", source="a test", acts_on=frozenset({"embedding"}), gated=False
    )
    def double(deltas: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """Twice the task vector."""
        return torch.full((), 2.0)

    try:
        both = ["embeddings_for_test", "wsc"]
        result = magmerge.merge(base=base, experts=experts, calibrate=both)
    finally:
        del registry.calibrators._items["embeddings_for_test"]
    done = {record.name: record.calibrated_by for record in result.records}
    assert done["embed_tokens.weight"] == ("embeddings_for_test",)
    assert done["layers.0.mlp.weight"] == ("wsc",)


@pytest.mark.parametrize("content", ["{oops", "[1]"])
def test_a_broken_config_is_found_before_the_work(
    folders: list[Path], tmp_path: Path, content: str
) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        magmerge.merge(
            base=folders[0],
            experts=folders[1:],
            donor=donor,
            dtype="bf16",
            out=tmp_path / "out",
            progress=lambda *_: pytest.fail("work was begun"),
        )


def test_a_config_with_lists_of_sizes_is_read(
    save: Callable[[str, State], Path], base: State, experts: list[State]
) -> None:
    folder = save("base", base)
    config = {"vocab_size": 11, "image_size": [224, 224], "patch_size": {"h": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    assert magmerge.plan(base=folder, experts=experts).steps


def test_a_donor_of_another_architecture_is_refused(folders: list[Path], tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OutputError, match="model_type 'bert'"):
        magmerge.plan(base=folders[0], experts=folders[1:], donor=donor, out=tmp_path / "o")


def test_naming_the_file_instead_of_its_folder_changes_nothing(
    save: Callable[[str, State], Path],
) -> None:
    folder = save("gpt2", {"h.0.attn.c_attn.weight": torch.zeros(4, 12)})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    for path in (folder, folder / "model.safetensors"):
        assert magmerge.inspect(path).tensors[0].kind == "transposed"


def test_a_torch_index_is_held_to_its_word(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    weight_map = {"a": "pytorch_model-1.bin", "LOST": "pytorch_model-1.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="LOST is listed but in no shard"):
        magmerge.open_checkpoint(tmp_path)


def test_mixed_up_arguments_of_calibrate_are_told(base: State, experts: list[State]) -> None:
    merged = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    with pytest.raises(StructureError, match="equal to the base"):
        magmerge.calibrate(base, base=base, experts=experts)
    with pytest.raises(StructureError, match="equal to the expert"):
        magmerge.calibrate(experts[0], base=base, experts=experts)
    with pytest.warns(magmerge.MagmergeWarning, match="really their base"):
        magmerge.calibrate(base, base=merged, experts=experts)


def test_a_negative_weight_turns_a_task_vector_round() -> None:
    ties = magmerge.method("ties").fn
    deltas = torch.tensor([[1.0], [-2.0]])
    assert ties(deltas, density=1.0, weights=[1.0, -1.0]).tolist() == [1.5]


def test_tiny_models_are_interpolated_on_the_sphere_too() -> None:
    pair = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    slerp = magmerge.method("slerp").fn
    assert torch.allclose(slerp(pair * 2.0**-90) * 2.0**90, slerp(pair), rtol=1e-5)


def test_names_and_paths_that_are_no_text_survive(
    folders: list[Path], tmp_path: Path, base: State
) -> None:
    odd = tmp_path / b"exp\xff".decode(errors="surrogateescape")
    folders[1].rename(odd)
    out = tmp_path / "out"
    magmerge.merge(base=folders[0], experts=[odd, folders[2]], out=out)
    assert json.loads((out / "magmerge.json").read_text())["inputs"]
    with pytest.raises(StructureError, match="cannot be a tensor's name"):
        magmerge.plan(base={"\ud800": base["lm_head.weight"]}, experts=[])
    with pytest.raises(StructureError, match="cannot be a tensor's name"):
        magmerge.plan(base={"__metadata__": base["lm_head.weight"]}, experts=[])


def test_unreadable_and_overlong_paths_are_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        magmerge.open_checkpoint("x" * 5000)
    with pytest.raises(CheckpointError, match="path is empty"):
        magmerge.open_checkpoint("")


@pytest.mark.parametrize(
    "arguments",
    [
        {"experts": None},
        {"experts": 3},
        {"experts": "path"},
        {"experts": {"w": torch.ones(1)}},
        {"experts": [{"w": np.ones(1, ">f4")}]},
        {"experts": [{3: torch.ones(1)}]},
        {"experts": [{"w": torch.ones(1, device="meta")}]},
        {"experts": [{"w": torch.ones(1)}], "seed": "x"},
        {"experts": [{"w": torch.ones(1)}], "dtype": torch.int8},
        {"experts": [{"w": torch.ones(1)}], "calibrate": 5},
        {"experts": [{"w": torch.ones(1)}], "params": [1]},
        {"experts": [{"w": torch.ones(1)}], "threads": "2"},
        {"experts": [{"w": torch.ones(1)}], "shard_size": "9" * 500},
        {"experts": [{"w": torch.ones(1)}], "out": ""},
    ],
    ids=",".join,
)
def test_wrong_python_arguments_are_magmerges_own_errors(arguments: dict) -> None:
    with pytest.raises(MagmergeError):
        magmerge.merge(base={"w": torch.zeros(1)}, **arguments)


def test_a_dtype_may_be_torchs_own_and_experts_a_generator() -> None:
    experts = ({"w": torch.full((2,), float(i))} for i in (1, 3))
    result = magmerge.merge(experts=experts, method="average", dtype=torch.bfloat16)
    assert result.state_dict()["w"].tolist() == [2, 2]
    assert len(repr(result)) < 80


def test_an_adapter_in_the_wrong_place_is_recognised(tmp_path: Path, base: State) -> None:
    name = "base_model.model.layers.0.mlp"
    factors = {
        f"{name}.lora_A.weight": torch.ones(2, 24),
        f"{name}.lora_B.weight": torch.ones(48, 2),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        magmerge.merge(base=base, experts=[tmp_path / "adapter_model.safetensors"])
    config = {"peft_type": "LORA", "lora_alpha": 2, "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the base must be a whole model"):
        magmerge.merge(base=tmp_path, experts=[base])


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("della", {"density": 0.9}, "epsilon"),
        ("della_linear", {"density": 0.2, "epsilon": 0.3}, "epsilon"),
        ("average", {"weights": [1.0, -1.0, 0.0]}, "add up to zero"),
        ("task_arithmetic", {"weights": [1.0, -1.0, 0.0], "normalize": True}, "add up to zero"),
        ("dare", {"weights": [1.0, -1.0, 0.0]}, "add up to zero"),
    ],
)
def test_parameters_that_do_not_go_together_are_found_by_plan(
    method: str, params: dict, words: str, base: State, experts: list[State]
) -> None:
    with pytest.raises(ParameterError, match=words):
        magmerge.plan(base=base, experts=experts, method=method, params=params)


WRONG = [
    {"method": 3},
    {"method": "ties", "params": {3: 4}},
    {"ignore": 3},
    {"skip": 3, "calibrate": "wsc"},
    {"sensitive": 3, "calibrate": "wsc"},
    {"shard_size": [1]},
    {"naming": 3},
    {"rank": [2]},
    {"out": 3},
    {"out": "o\0"},
    {"out": ""},
    {"donor": "a\0b"},
    {"dtype": 3},
    {"seed": "one"},
    {"calibrate": 3},
    {"threads": "two"},
    {"memory": []},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_type_is_a_mistake_and_no_traceback(
    base: State, experts: list[State], wrong: dict
) -> None:
    with pytest.raises(MagmergeError) as raised:
        magmerge.merge(**{"base": base, "experts": experts, "method": "average", **wrong})
    assert raised.value.remedy


@pytest.mark.parametrize("path", ["", "a\0b", "no/such/model"])
def test_a_path_that_is_none_is_told(path: str, base: State) -> None:
    with pytest.raises(MagmergeError) as raised:
        magmerge.merge(base=path, experts=[base], method="average")
    assert raised.value.remedy


def test_a_model_that_is_its_own_base_is_told_so(
    save: Callable[[str, State], Path], base: State, tmp_path: Path
) -> None:
    folder = save("base", base)
    with pytest.raises(StructureError) as raised:
        magmerge.extract(base=folder, model=folder, out=tmp_path / "out")
    assert "the base that it was tuned from" in str(raised.value.remedy)


def test_the_remedy_for_a_naming_without_places_is_true(tmp_path: Path) -> None:
    adapter = folder_of(tmp_path / "adapter", factors_of({"layers.0.mlp": (8, 8)}, 2, 0))
    with pytest.raises(MagmergeError) as raised:
        magmerge.convert(adapter, tmp_path / "a.safetensors", naming="kohya")
    assert "--format peft" in str(raised.value.remedy)
    magmerge.convert(adapter, tmp_path / "again", naming="peft")
    assert (tmp_path / "again" / "adapter_config.json").is_file()
