from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, StructureError, UnknownNameError
from tests.conftest import State


def actions(plan: object) -> dict[str, str]:
    return {step.spec.name: step.action for step in plan.steps}


def test_every_tensor_has_a_fate_and_a_reason(base: State, experts: list[State]) -> None:
    base["counter"] = torch.tensor(3)
    base["bn.running_mean"] = torch.zeros(4)
    base["bn.running_var"] = torch.ones(4)
    base["gone"] = torch.zeros(0, 3)
    for i, expert in enumerate(experts):
        expert.update({n: base[n] + i for n in ("counter", "bn.running_mean", "bn.running_var")})
        expert["gone"] = base["gone"]
    plan = magmerge.plan(base=base, experts=experts, method="ties", calibrate="wsc")
    found = actions(plan)
    assert list(found) == list(base)
    assert found["counter"] == "carry"
    assert found["gone"] == "carry"
    assert found["bn.running_var"] == "average"
    assert all(step.reason for step in plan.steps)
    calibrated = {step.spec.name for step in plan.steps if step.calibrated}
    assert calibrated == {"layers.0.attn.weight", "layers.0.mlp.weight", "layers.0.conv.weight"}


def test_all_faults_are_listed_not_the_first(base: State, experts: list[State]) -> None:
    del experts[0]["lm_head.weight"]
    experts[1]["classifier.weight"] = torch.zeros(2, 2)
    experts[2]["layers.0.mlp.weight"] = torch.zeros(3, 3)
    experts[2]["layers.0.norm.weight"] = torch.zeros(24, dtype=torch.int64)
    with pytest.raises(StructureError) as caught:
        magmerge.plan(base=base, experts=experts)
    assert len(caught.value.faults) == 4
    message = str(caught.value)
    for part in ("lm_head.weight is missing", "classifier.weight", "[3, 3]", "is int64"):
        assert part in message
    assert "--ignore" in message


def test_ignored_tensors_are_carried_and_extra_ones_dropped(
    base: State, experts: list[State]
) -> None:
    del experts[0]["lm_head.weight"]
    experts[1]["classifier.weight"] = torch.zeros(2, 2)
    ignore = ["classifier.*", "lm_head.weight"]
    result = magmerge.merge(base=base, experts=experts, ignore=ignore).state_dict()
    assert list(result) == list(base)
    assert torch.equal(result["lm_head.weight"], base["lm_head.weight"])


def test_a_method_says_how_many_experts_it_takes(base: State, experts: list[State]) -> None:
    with pytest.raises(StructureError, match="slerp takes exactly 2 experts, but 3 are given"):
        magmerge.plan(base=base, experts=experts, method="slerp")
    with pytest.raises(StructureError, match="2 weights are given for 3 experts"):
        magmerge.plan(base=base, experts=experts, params={"weights": [1.0, 2.0]})


def test_task_vectors_need_a_base_and_means_do_not(experts: list[State]) -> None:
    with pytest.raises(StructureError, match="needs a base model"):
        magmerge.plan(experts=experts, method="ties")
    mean = magmerge.merge(experts=experts[:2], method="average").state_dict()
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (experts[0][name] + experts[1][name]) / 2, atol=1e-6)


def test_quantised_models_are_refused(
    save: Callable[[str, State], Path], base: State, experts: list[State]
) -> None:
    folder = save("base", base)
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(StructureError, match="is quantised"):
        magmerge.plan(base=folder, experts=experts)
    experts[0]["lm_head.weight"] = experts[0]["lm_head.weight"].to(torch.float8_e4m3fn)
    experts[0]["lm_head.scale"] = torch.ones(3, 5)
    with pytest.raises(StructureError, match=r"is quantised: lm_head.weight \(float8_e4m3fn\)"):
        magmerge.plan(base=base, experts=experts)


def test_another_precision_is_a_warning(base: State, experts: list[State]) -> None:
    experts[0] = {name: tensor.half() for name, tensor in experts[0].items()}
    with pytest.warns(magmerge.MagmergeWarning, match="float16 tensors where"):
        result = magmerge.merge(base=base, experts=experts)
    assert all(tensor.dtype == torch.float32 for tensor in result.state_dict().values())


def test_sensitive_layers_are_matched_whole(
    base: State, experts: list[State], tmp_path: Path
) -> None:
    file = tmp_path / "sensitive.json"
    for entry in ("layers.0.attn", "layers.0.attn.weight"):
        file.write_text(json.dumps({"sensitive": [entry]}))
        plan = magmerge.plan(base=base, experts=experts, calibrate="wsc", sensitive=file)
        marked = [step.spec.name for step in plan.steps if step.sensitive]
        assert marked == ["layers.0.attn.weight"]
    for entry in ("attn", "layers.0.att", "lm_head"):
        file.write_text(entry)
        with pytest.raises(UnknownNameError, match="none of the calibrated ones"):
            magmerge.plan(base=base, experts=experts, calibrate="wsc", sensitive=file)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"other": []}', "3"])
def test_a_broken_sensitivity_file_is_an_error(
    base: State, experts: list[State], tmp_path: Path, text: str
) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(MagmergeError):
        magmerge.plan(base=base, experts=experts, calibrate="wsc", sensitive=tmp_path / "s.json")
    with pytest.raises(ParameterError, match="cannot be read"):
        magmerge.plan(base=base, experts=experts, calibrate="wsc", sensitive=tmp_path / "none")


def test_a_sensitive_list_without_effect_is_an_error(base: State, experts: list[State]) -> None:
    for more in ({}, {"calibrate": "wsc", "gate": "off"}):
        with pytest.raises(ParameterError, match="has no effect"):
            magmerge.plan(base=base, experts=experts, sensitive=["layers.0.attn"], **more)


def test_a_plan_reads_no_tensor(
    base: State, experts: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [magmerge.open_checkpoint(state) for state in (base, *experts)]

    def forbidden(*_: object) -> None:
        raise AssertionError("a tensor was read")

    for checkpoint in opened:
        monkeypatch.setattr(checkpoint, "read", forbidden)
    plan = magmerge.plan(base=opened[0], experts=opened[1:], method="ties", calibrate="wsc")
    assert plan.disk > sum(tensor.numel() * 4 for tensor in base.values())


def test_a_tie_that_an_expert_broke_is_no_tie() -> None:
    shared = torch.zeros(3, 2)
    base = {"a": shared, "b": shared}
    untied = {"a": torch.ones(3, 2), "b": torch.full((3, 2), 5.0)}
    result = magmerge.merge(base=base, experts=[untied], method="average").state_dict()
    assert torch.equal(result["b"], untied["b"])
    with pytest.raises(StructureError, match="b is missing from"):
        magmerge.plan(base=base, experts=[untied, {"a": torch.ones(3, 2)}])
