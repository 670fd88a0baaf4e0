from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.core.errors import CheckpointError, MagmergeError, NonFiniteError, ParameterError
from tests.conftest import State
from tests.reference_digest import reference_digest


def by_hand(base: State, experts: list[State], lam: float) -> State:
    return {
        name: (tensor.float() + lam * sum(e[name].float() - tensor.float() for e in experts)).to(
            tensor.dtype
        )
        for name, tensor in base.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_task_arithmetic_is_as_by_hand_in_float32_with_one_cast(
    base: State, experts: list[State], dtype: torch.dtype
) -> None:
    base, *experts = ({n: t.to(dtype) for n, t in s.items()} for s in (base, *experts))
    result = magmerge.merge(base=base, experts=experts).state_dict()
    for name, tensor in by_hand(base, experts, 0.3).items():
        assert result[name].dtype == dtype
        assert torch.allclose(result[name].float(), tensor.float(), rtol=1e-2, atol=1e-6)


def test_float64_models_are_merged_in_float64(base: State, experts: list[State]) -> None:
    base, *experts = ({n: t.double() for n, t in s.items()} for s in (base, *experts))
    result = magmerge.merge(base=base, experts=experts, method="average").state_dict()
    expected = sum(e["lm_head.weight"] for e in experts) / 3
    assert torch.allclose(result["lm_head.weight"], expected, rtol=1e-14)


def test_inputs_are_never_changed(base: State, experts: list[State]) -> None:
    before = [{n: t.clone() for n, t in state.items()} for state in (base, *experts)]
    magmerge.merge(base=base, experts=experts, method="ties", calibrate="wsc")
    for state, kept in zip((base, *experts), before, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_merging_with_a_calibration_equals_calibrating_the_merge(
    base: State, experts: list[State]
) -> None:
    once = magmerge.merge(base=base, experts=experts, calibrate="wsc").state_dict()
    merged = magmerge.merge(base=base, experts=experts).state_dict()
    twice = magmerge.calibrate(merged, base=base, experts=experts, method="wsc").state_dict()
    for name, tensor in once.items():
        assert torch.allclose(twice[name], tensor, atol=1e-5), name


def test_calibrating_leaves_everything_else_bit_for_bit(base: State, experts: list[State]) -> None:
    merged = magmerge.merge(base=base, experts=experts).state_dict()
    result = magmerge.calibrate(merged, base=base, experts=experts)
    touched = {record.name for record in result.records}
    assert touched == {"layers.0.attn.weight", "layers.0.mlp.weight", "layers.0.conv.weight"}
    for name, tensor in result.state_dict().items():
        assert torch.equal(tensor, merged[name]) == (name not in touched)


def test_a_merge_that_the_gate_holds_is_not_changed_in_one_bit(
    base: State, experts: list[State]
) -> None:
    big = magmerge.merge(base=base, experts=experts, params={"lambda": 5.0}).state_dict()
    result = magmerge.calibrate(big, base=base, experts=experts)
    assert all(torch.equal(t, big[n]) for n, t in result.state_dict().items())
    assert all(record.xi == 1 and record.xi_free < 0.5 for record in result.records)


def test_the_gate_can_be_lifted(base: State, experts: list[State]) -> None:
    big = magmerge.merge(base=base, experts=experts, params={"lambda": 5.0}).state_dict()
    result = magmerge.calibrate(big, base=base, experts=experts, gate="off")
    assert all(record.xi < 0.5 for record in result.records)
    with pytest.raises(ParameterError, match="gate"):
        magmerge.calibrate(big, base=base, experts=experts, gate="ajar")


def test_skipped_layers_are_merged_but_not_calibrated(base: State, experts: list[State]) -> None:
    plain = magmerge.merge(base=base, experts=experts).state_dict()
    result = magmerge.merge(base=base, experts=experts, calibrate="wsc", skip=["*.mlp.*"])
    name = "layers.0.mlp.weight"
    assert torch.equal(result.state_dict()[name], plain[name])


def test_correlated_experts_are_warned_of(base: State, experts: list[State]) -> None:
    near = [{n: t + 0.01 * i for n, t in experts[0].items()} for i in (1, 2)]
    for params, expected in (({}, True), ({"target": "sphere"}, False)):
        calibrate = {"method": "wsc", "params": params}
        if expected:
            with pytest.warns(magmerge.MagmergeWarning, match="near-orthogonal"):
                result = magmerge.merge(base=base, experts=near, calibrate=calibrate)
        else:
            result = magmerge.merge(base=base, experts=near, calibrate=calibrate)
        told = any("near-orthogonal" in note for note in result.warnings)
        assert told == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(
    base: State, experts: list[State], value: float
) -> None:
    experts[1]["layers.0.mlp.weight"][2, 3] = value
    with pytest.raises(NonFiniteError) as caught:
        magmerge.merge(base=base, experts={"a": experts[0], "b": experts[1]})
    assert caught.value.tensor == "layers.0.mlp.weight"
    ignored = magmerge.merge(base=base, experts=experts, ignore=["layers.0.mlp.weight"])
    assert torch.equal(ignored.state_dict()["layers.0.mlp.weight"], base["layers.0.mlp.weight"])


def test_a_value_too_large_for_the_output_is_an_error(base: State, experts: list[State]) -> None:
    experts[0]["lm_head.weight"][0, 0] = 1e6
    with pytest.raises(NonFiniteError, match="too large for float16"):
        magmerge.merge(base=base, experts=experts, dtype="float16")


def test_tied_tensors_integers_scalars_and_empty_tensors_survive() -> None:
    shared = torch.randn(4, 3)
    base = {
        "embed.weight": shared,
        "head.weight": shared,
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "scale": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
    }
    other = torch.randn(4, 3)
    expert = {**base, "embed.weight": other, "head.weight": other, "scale": torch.tensor(4.0)}
    for method in ("dare", "ties", "task_arithmetic"):
        result = magmerge.merge(base=base, experts=[expert], method=method).state_dict()
        assert list(result) == list(base)
        assert torch.equal(result["embed.weight"], result["head.weight"])
        assert result["embed.weight"].data_ptr() == result["head.weight"].data_ptr()
        for name in ("steps", "mask", "none"):
            assert torch.equal(result[name], base[name])
        assert result["scale"].shape == ()


def test_sixteen_bit_outputs_are_close_to_the_float32_result(
    base: State, experts: list[State]
) -> None:
    exact = magmerge.merge(base=base, experts=experts).state_dict()
    small = magmerge.merge(base=base, experts=experts, dtype="bf16").state_dict()
    assert all(torch.equal(small[n], exact[n].bfloat16()) for n in base)


def test_provenance_is_complete_and_true(folders: list[Path], tmp_path: Path) -> None:
    magmerge.merge(
        base=folders[0],
        experts=folders[1:],
        method="ties",
        calibrate="wsc",
        out=tmp_path / "out",
        seed=3,
    )
    document = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert document["magmerge"] == magmerge.__version__
    assert document["recipe"]["params"]["density"] == 0.2
    assert document["recipe"]["calibrate"][0]["params"]["target"] == "ellipsoid"
    assert document["recipe"]["seed"] == 3
    assert document["recipe_digest"] == magmerge.Recipe(**document["recipe"]).digest
    assert [one["role"] for one in document["inputs"]] == ["base", "expert", "expert", "expert"]
    digest = reference_digest(folders[1] / "model.safetensors")
    assert document["inputs"][1]["files"] == {"model.safetensors": digest}
    assert len(document["layers"]) == len(load_file(tmp_path / "out" / "model.safetensors"))


def test_modules_are_models_too() -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    experts = [torch.nn.Sequential(*[type(m)(8, 8) if i == 0 else m for i, m in enumerate(base)])]
    experts.append({n: t + 1 for n, t in base.state_dict().items()})
    result = magmerge.merge(base=base, experts=experts, method="average")
    fresh = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    fresh.load_state_dict(result.state_dict())


def test_data_for_a_calibrator_of_weights_is_a_mistake(base: State, experts: list[State]) -> None:
    with pytest.raises(ParameterError, match="no calibration looks at it"):
        magmerge.calibrate(base, base=base, experts=experts, data={"a": []})


def test_a_calibration_without_a_base_is_a_mistake(experts: list[State]) -> None:
    with pytest.raises(MagmergeError, match="no base is given"):
        magmerge.merge(experts=experts, method="average", calibrate="wsc")


def test_progress_is_reported_to_the_end(base: State, experts: list[State]) -> None:
    calls: list[tuple[str, int, int]] = []
    params = {"scope": "model"}
    magmerge.merge(
        base=base,
        experts=experts,
        method="ties",
        params=params,
        progress=lambda *call: calls.append(call),
    )
    assert calls[-1] == ("merging", len(base), len(base))
    assert {label for label, _, _ in calls} == {"surveying, sweep 1", "merging"}


def test_an_expert_that_changes_biases_only_is_an_expert_to_every_method() -> None:
    base = {"a.weight": torch.randn(8, 6), "a.bias": torch.zeros(8)}
    experts = [{**base, "a.bias": torch.full((8,), float(k))} for k in (1, 2)]
    for method, bias in (("task_arithmetic", 1.5), ("tsv_m", 0.75), ("iso_c", 0.75)):
        merged = magmerge.merge(base=base, experts=experts, method=method, params={"lambda": 0.5})
        state = merged.state_dict()
        assert torch.equal(state["a.weight"], base["a.weight"])
        assert torch.allclose(state["a.bias"], torch.full((8,), bias))


def test_an_input_that_is_replaced_meanwhile_is_found_out(
    folders: list[Path], tmp_path: Path
) -> None:
    file = folders[1] / "model.safetensors"

    def replace(label: str, done: int, total: int) -> None:
        if label == "merging" and done == 1:
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)

    with pytest.raises(CheckpointError, match="changed after it was opened"):
        magmerge.merge(base=folders[0], experts=folders[1:], out=tmp_path / "out", progress=replace)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_fused_experts_are_matrices_to_spectral_methods_and_one_tensor_to_others() -> None:
    base = {"mlp.experts.gate_up_proj": torch.zeros(4, 8, 32)}
    experts = [{"mlp.experts.gate_up_proj": torch.randn(4, 8, 32)} for _ in range(3)]
    stacked = torch.stack([expert["mlp.experts.gate_up_proj"] for expert in experts])

    def run(method: str) -> torch.Tensor:
        merged = magmerge.merge(base=base, experts=experts, method=method)
        return merged.state_dict()["mlp.experts.gate_up_proj"]

    each = torch.stack([magmerge.method("iso_c").fn(stacked[:, i]) for i in range(4)])
    assert torch.allclose(run("iso_c"), each, atol=1e-6)
    assert torch.equal(run("karcher"), magmerge.method("karcher").fn(stacked))


def test_the_layers_of_a_transposed_model_are_merged_as_their_rows() -> None:
    shape = (24, 16)
    base = {"h.0.attn.c_attn.weight": torch.zeros(shape)}
    experts = [{"h.0.attn.c_attn.weight": torch.randn(shape)} for _ in range(2)]
    stacked = torch.stack([expert["h.0.attn.c_attn.weight"] for expert in experts])
    kinds = {"h.0.attn.c_attn.weight": "transposed"}
    opened = MemoryCheckpoint(base, kinds=kinds)
    for method in ("iso_c", "iso_cts", "tsv_m", "wudi"):
        merged = magmerge.merge(base=opened, experts=experts, method=method).state_dict()
        expected = magmerge.method(method).fn(stacked.transpose(1, 2).contiguous()).T
        assert torch.allclose(merged["h.0.attn.c_attn.weight"], expected, atol=1e-5), method
