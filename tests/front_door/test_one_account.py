"""What a result says of itself is true of it: its inputs, its samples, what `plan` promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    ParameterError,
    StructureError,
    UnknownNameError,
)
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, State, random_state, tuned

MODULES = {"lora_unet_a": (6, 4), "lora_unet_b": (4, 4)}


def replaced(path: Path, state: State) -> None:
    """Another file under the same name, as a training program would put it there."""
    new = path.with_suffix(".new")
    save_file(state, new)
    new.replace(path)


def test_a_result_in_memory_is_not_saved_as_made_of_files_that_were_not_merged(
    folders: list[Path], tmp_path: Path
) -> None:
    result = magmerge.merge(base=folders[0], experts=folders[1:])
    replaced(folders[1] / "model.safetensors", random_state(9))
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = magmerge.merge(base=folders[0], experts=folders[1:])
    again.save(tmp_path / "out")


def test_a_merge_of_adapters_notices_a_change_of_its_inputs(tmp_path: Path) -> None:
    files = [write_adapter(tmp_path / f"{k}.safetensors", MODULES, seed=k) for k in range(2)]
    other = write_adapter(tmp_path / "other.safetensors", MODULES, seed=9).read_bytes()

    def change(*_: object) -> None:
        files[1].write_bytes(other)

    with pytest.raises(CheckpointError, match="changed after it was opened"):
        magmerge.merge(
            experts=files,
            params={"lambda": 1.0},
            out=tmp_path / "out.safetensors",
            progress=change,
        )
    assert not (tmp_path / "out.safetensors").exists()
    result = magmerge.merge(experts=files, params={"lambda": 1.0})
    files[0].write_bytes(other)
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        result.save(tmp_path / "out.safetensors")


def test_an_extraction_notices_a_change_of_its_inputs(folders: list[Path], tmp_path: Path) -> None:
    with pytest.warns(magmerge.MagmergeWarning, match="not in the adapter"):
        found = magmerge.extract(base=folders[0], model=folders[1])
    replaced(folders[1] / "model.safetensors", random_state(9))
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        found.save(tmp_path / "out")


@pytest.mark.parametrize(
    "wrong", [{"donor": "."}, {"device": "cuda"}, {"shard_size": "nonsense"}], ids=str
)
def test_plan_and_merge_refuse_the_same_of_adapters(tmp_path: Path, wrong: dict[str, Any]) -> None:
    files = [write_adapter(tmp_path / f"{k}.safetensors", MODULES, seed=k) for k in range(2)]
    said = []
    for verb in (magmerge.plan, magmerge.merge):
        with pytest.raises(MagmergeError) as caught:
            verb(experts=files, **wrong)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "change",
    [{"max_length": 3}, {"text_field": "body"}, {"batch": 2}, {"split": "train"}],
    ids=lambda change: next(iter(change)),
)
def test_a_recipe_s_digest_tells_how_samples_were_prepared(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    from tests.evaluation.models import save_llama, save_rows

    base = save_llama(tmp_path / "base")
    expert = save_llama(tmp_path / "expert", seed=1)
    texts = save_rows(tmp_path / "t.jsonl", [{"text": "yes no good bad", "body": "a b c d"}] * 3)

    def plan(samples: dict[str, Any]) -> str:
        return magmerge.plan(
            base=base, experts=[expert], calibrate="fsc", data=texts, samples=samples
        ).digest

    plain = plan({"samples": 2})
    assert plan({"samples": 2}) == plain
    assert plan({"samples": 2, **change}) != plain


def test_a_record_tells_how_samples_were_prepared(tmp_path: Path) -> None:
    from tests.evaluation.models import save_llama, save_rows

    base = save_llama(tmp_path / "base")
    texts = save_rows(tmp_path / "t.jsonl", [{"body": "yes no good bad"}] * 3)
    expert = save_llama(tmp_path / "expert", seed=1)
    magmerge.merge(
        base=base, experts=[expert], calibrate="fsc", data=texts, out=tmp_path / "out",
        samples={"samples": 2, "text_field": "body", "max_length": 3},
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert record["recipe"]["samples"]["prepared"] == {"text_field": "body", "max_length": 3}


def test_a_misspelt_trait_of_a_method_is_told() -> None:
    with pytest.raises(UnknownNameError, match="'ordred'") as caught:
        magmerge.register_method("own", source="here", ordred=True)
    assert "ordered" in caught.value.remedy
    with pytest.raises(UnknownNameError, match="'gatd'") as caught:
        magmerge.register_calibrator("own", source="here", acts_on=frozenset(), gatd=True)
    assert "gated" in caught.value.remedy


def test_a_parameter_that_could_never_be_set_is_told() -> None:
    def own(deltas: Tensor, strength: float = 1.0) -> Tensor:
        """The sum."""
        return deltas.sum(0) * strength

    register: Callable[..., Any] = magmerge.register_method("own", source="here")
    with pytest.raises(MagmergeError, match="strength of own is not keyword-only") as caught:
        register(own)
    assert "*" in caught.value.remedy
    with pytest.raises(ParameterError, match="lambda"):
        magmerge.merge(base=random_state(0), experts=[tuned(random_state(0), 1)],
                       params={"lambda": "x"})  # fmt: skip


def test_each_fault_has_its_own_remedy(tmp_path: Path) -> None:
    """Whatever words the names of models hold."""
    base = random_state(0)
    odd = tmp_path / "my model takes 2 which is given twice"
    odd.mkdir()
    save_file(
        {**tuned(base, 1), "own.bias": base["layers.0.norm.weight"]}, odd / "model.safetensors"
    )
    with pytest.raises(StructureError) as caught:
        magmerge.merge(
            base=base, experts=[odd], method="slerp", ignore=["nosuch.*"], params={"t": 0.5}
        )
    told = caught.value.remedies
    assert len(told) == 3
    (count,) = told["give as many experts as the method takes, or choose another method"]
    assert count == "slerp takes exactly 2 experts, but 1 is given"
    (pattern,) = [texts for remedy, texts in told.items() if remedy.startswith("patterns match")]
    assert pattern == ["the pattern 'nosuch.*' matches no tensor"]
    (extra,) = [texts for remedy, texts in told.items() if remedy.startswith("give models of one")]
    assert extra == [f"own.bias of {odd} is not in tensors in memory"]
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 faults found before any work"
    for remedy, texts in told.items():
        assert lines.index(f"  - {texts[0]}") + 1 == lines.index(f"  remedy: {remedy}")
    assert caught.value.as_dict()["remedies"] == told


def test_what_an_adapter_has_and_the_base_has_not_is_no_reason_to_ignore_it(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    save_file({"a.weight": random_state(0)["layers.0.attn.weight"]}, tmp_path / "b.safetensors")
    adapter = write_adapter(tmp_path / "l.safetensors", {"unet.a": (24, 24), "unet.c": (4, 4)})
    found = magmerge_cli(
        "merge", "--base", tmp_path / "b.safetensors", "--expert", adapter, tmp_path / "out"
    )
    assert found.code == 1
    assert "name the model that this adapter was trained on" in found.message
    assert "--ignore" not in found.message


def test_a_method_that_is_not_cut_as_it_says_is_refused() -> None:
    from magmerge.core import registry

    def centred(deltas, *, strength: float = 1.0):  # type: ignore[no-untyped-def]
        return strength * (deltas.mean(0) - deltas.mean())

    for cut in ("entries", "rows", "whole"):
        magmerge.register_method(f"centred_{cut}", source="a test", cut=cut)(centred)
    base, experts = {"a.weight": torch.randn(8, 8)}, [{"a.weight": torch.randn(8, 8)}] * 1
    try:
        for cut in ("entries", "rows"):
            with pytest.raises(magmerge.MagmergeError, match=f'says cut="{cut}"'):
                magmerge.plan(base=base, experts=experts, method=f"centred_{cut}")
        magmerge.merge(base=base, experts=experts, method="centred_whole")
    finally:
        for cut in ("entries", "rows", "whole"):
            del registry.methods._items[f"centred_{cut}"]
