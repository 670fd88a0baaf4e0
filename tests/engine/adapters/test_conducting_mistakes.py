"""Merges of adapters that cannot be, found before anything is written, and what stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeError
from tests.engine.adapters.test_conducting import MODULES, both, diffusers_file, peft_folder


def silenced(path: Path) -> Path:
    """An adapter that was never trained."""
    file = diffusers_file(path, 5)
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file({k: t * ("lora_B" not in k) for k, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "the rank is 0"),
        ({"method": "ties", "rank": "exact"}, "does not keep to the ranks"),
        ({"calibrate": "fsc", "data": "x.jsonl"}, "adapters alone are no model"),
        ({"memory": "1MB"}, "of memory are too little"),
        ({"device": "cuda"}, "merged on the cpu"),
        ({"method": "nuslerp", "experts": 1}, "takes exactly 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    count = options.pop("experts", 2)
    with pytest.raises(MagmergeError, match=words):
        magmerge.merge(experts=both(tmp_path)[:count], **options)


def test_copies_untrained_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    first, second = both(tmp_path)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.read_bytes())
    with pytest.raises(MagmergeError, match="the same adapter"):
        magmerge.merge(experts=[first, copy])
    with pytest.raises(MagmergeError, match="changes nothing"):
        magmerge.merge(experts=[first, silenced(tmp_path / "zeros.safetensors")])
    other = {name: (2 * out, features) for name, (out, features) in MODULES.items()}
    foreign = diffusers_file(tmp_path / "foreign.safetensors", 7, **other)
    with pytest.raises(MagmergeError, match="has shape") as raised:
        magmerge.merge(experts=[second, foreign])
    assert all(name in str(raised.value) for name in MODULES)
    whole = tmp_path / "whole.safetensors"
    save_file({"layer.weight": torch.ones(2, 2)}, whole)
    with pytest.raises(MagmergeError, match="is a whole model, and"):
        magmerge.merge(experts=[first, whole])


def test_nothing_is_left_where_the_output_is_taken(tmp_path: Path) -> None:
    files, out = both(tmp_path), tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(MagmergeError, match="exists already"):
        magmerge.merge(experts=files, out=out)
    with pytest.raises(MagmergeError, match=r"end the name in \.safetensors"):
        magmerge.plan(experts=files, method="average", out=tmp_path / "folder")
    assert out.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.safetensors", "1.safetensors", "out.safetensors",
    ]  # fmt: skip


def test_rank_speaks_of_adapters_only() -> None:
    experts = [{"w": torch.randn(3, 3)}, {"w": torch.randn(3, 3)}]
    for wish in ({"rank": 4}, {"rank": "auto", "energy": 0.5}, {"naming": "kohya"}):
        with pytest.raises(MagmergeError, match="rank, energy and naming speak of adapters"):
            magmerge.merge(experts=experts, method="average", **wish)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": -3}, "the rank is -3"),
        ({"rank": "many"}, "the rank is 'many'"),
        ({"rank": True}, "the rank is True"),
        ({"rank": 8, "energy": 0.5}, "energy speaks of rank auto"),
        ({"rank": "auto", "energy": 0.0}, "the energy is 0.0"),
        ({"rank": "auto", "energy": 1.5}, "the energy is 1.5"),
        ({"rank": "auto", "energy": float("nan")}, "the energy is nan"),
        ({"naming": "koyha"}, "there is no naming 'koyha'"),
    ],
)
def test_wishes_without_a_meaning(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(MagmergeError, match=words):
        magmerge.merge(experts=both(tmp_path), method="average", **options)


def test_the_plan_says_what_it_takes(tmp_path: Path) -> None:
    plan = magmerge.plan(experts=both(tmp_path), method="average", calibrate="wsc")
    assert {step.spec.name for step in plan.steps} >= set(MODULES)
    assert all(step.calibrated for step in plan.steps)
    result = magmerge.merge(experts=both(tmp_path), method="average")
    assert result.plan.disk == plan.disk


def test_an_ignored_replaced_module_is_not_named_to_peft(tmp_path: Path) -> None:
    folders = [peft_folder(tmp_path / "a", 0), peft_folder(tmp_path / "b", 1)]
    out = tmp_path / "out"
    magmerge.merge(experts=folders, method="average", ignore="classifier.*", out=out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_a_replaced_tensor_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", 0)
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file({k: t * (1e30 if "classifier" in k else 1) for k, t in tensors.items()}, file)
    with pytest.raises(MagmergeError, match="too large for float16") as raised:
        magmerge.merge(experts=[folder], method="average", dtype="float16")
    assert "classifier.weight" in str(raised.value)


def test_replaced_tensors_count_in_the_plan(tmp_path: Path) -> None:
    small = magmerge.plan(experts=[peft_folder(tmp_path / "a", 0)], method="average")
    large = magmerge.plan(experts=[peft_folder(tmp_path / "b", 0, head=50_000)], method="average")
    assert large.disk - small.disk == 4 * 10 * (50_000 - 3)
    assert large.memory - small.memory >= 2 * (large.disk - small.disk)
    with pytest.raises(MagmergeError, match="of memory are too little"):
        magmerge.plan(experts=[tmp_path / "b"], method="average", memory="121MB")


def test_a_replaced_result_takes_its_report_with_it(tmp_path: Path) -> None:
    files, out = both(tmp_path), tmp_path / "out.safetensors"
    magmerge.merge(experts=files, method="average", calibrate="wsc", out=out)
    assert (tmp_path / "out.report.html").exists()
    magmerge.merge(experts=files, method="average", out=out, overwrite=True)
    assert not (tmp_path / "out.report.html").exists()
    assert (tmp_path / "out.magmerge.json").exists()


def test_a_folder_in_the_place_of_the_report_is_found_before_work(tmp_path: Path) -> None:
    files = both(tmp_path)
    (tmp_path / "out.report.html").mkdir()
    with pytest.raises(MagmergeError, match="it is a folder") as raised:
        magmerge.merge(
            experts=files, method="average", calibrate="wsc", out=tmp_path / "out.safetensors",
            overwrite=True,
        )  # fmt: skip
    assert "out.report.html" in str(raised.value)
    assert not (tmp_path / "out.magmerge.json").exists()


def test_a_naming_without_a_place_is_found_by_the_plan(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", 0)
    with pytest.raises(MagmergeError, match="no place under the naming kohya") as raised:
        magmerge.plan(experts=[folder], method="average", naming="kohya")
    for name in ("bert.layer.0.query", "bert.layer.1.query", "classifier.weight"):
        assert name in str(raised.value)


def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", 0)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"(b+)+x": 3}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MagmergeError, match="could take for ever"):
        magmerge.plan(experts=[folder], method="average")


def test_names_cannot_speak_as_the_program(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", 0)
    name = "base_model.model.a\n  remedy: run this"
    tensors = {f"{name}.weight": torch.ones(2)}
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file(tensors, file)
    with pytest.raises(MagmergeError) as raised:
        magmerge.merge(experts=[folder], method="average")
    assert "\n  remedy: run this" not in str(raised.value)
    assert "a\\n  remedy: run this" in str(raised.value)


def test_a_donor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MagmergeError, match="takes no config"):
        magmerge.merge(experts=both(tmp_path), method="average", donor=tmp_path)
