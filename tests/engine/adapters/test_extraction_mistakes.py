"""Wishes and models that no adapter can be made of, each told with its remedy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.core.errors import (
    AdapterError,
    MagmergeError,
    NonFiniteError,
    OutputError,
    ParameterError,
    StructureError,
)
from tests.conftest import State


@pytest.mark.parametrize("rank", [0, -3, "many", 2.5, True, None, "exact"])
def test_a_rank_that_is_none(rank: object, base: State, model: State) -> None:
    with pytest.raises(ParameterError, match="the rank is"):
        magmerge.extract(base=base, model=model, rank=rank)


@pytest.mark.parametrize("energy", [0, -1, 1.01, math.nan, math.inf, "most", True])
def test_an_energy_that_is_no_share(energy: object, base: State, model: State) -> None:
    with pytest.raises(ParameterError, match="the energy is"):
        magmerge.extract(base=base, model=model, rank="auto", energy=energy)


def test_a_model_that_is_its_base(pair: tuple[Path, Path], base: State) -> None:
    with pytest.raises(StructureError, match="given twice"):
        magmerge.extract(base=pair[0], model=pair[0])
    with pytest.raises(StructureError, match="is equal to the base"):
        magmerge.extract(base=pair[0], model=dict(base))


def test_only_what_no_adapter_holds_was_changed(base: State) -> None:
    model = {**base, "layers.0.norm.weight": base["layers.0.norm.weight"] + 1}
    with pytest.raises(AdapterError, match=r"layers\.0\.norm\.weight \(a bias, a norm"):
        magmerge.extract(base=base, model=model)


def test_all_faults_of_another_architecture_are_listed(base: State, model: State) -> None:
    model["layers.0.mlp.weight"] = torch.zeros(48, 25)
    del model["lm_head.weight"]
    model["extra.weight"] = torch.zeros(2, 2)
    with pytest.raises(StructureError) as caught:
        magmerge.extract(base=base, model=model)
    text = str(caught.value)
    for words in ("layers.0.mlp.weight has shape", "lm_head.weight is missing", "extra.weight of"):
        assert words in text


@pytest.mark.parametrize("side", ["base", "model"])
@pytest.mark.parametrize("name", ["layers.0.mlp.weight", "layers.0.norm.weight"])
def test_what_is_not_finite_is_named(side: str, name: str, base: State, model: State) -> None:
    models = {"base": base, "model": model}
    models[side] = {**models[side], name: models[side][name].clone()}
    models[side][name].view(-1)[3] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        magmerge.extract(**models)
    assert caught.value.tensor == name


def test_a_factor_beyond_the_output_s_format_is_told(base: State, model: State) -> None:
    model["layers.0.mlp.weight"] += 1e12
    with pytest.raises(NonFiniteError, match="too large for float16"):
        magmerge.extract(base=base, model=model, dtype="float16")


def test_targets_that_name_nothing_are_told(base: State, model: State) -> None:
    with pytest.raises(StructureError, match="'q_proj' matches no tensor"):
        magmerge.extract(base=base, model=model, targets=["q_proj"])


def test_a_layer_that_does_not_fit_into_memory_is_found_first(base: State, model: State) -> None:
    big = {"w.weight": torch.zeros(2048, 2048)}
    with pytest.raises(ParameterError, match=r"this layer takes (.|\n)*--memory 0\.\d\dGB"):
        magmerge.extract(base=big, model={"w.weight": torch.ones(2048, 2048)}, memory="150MB")


def test_the_output_is_looked_at_before_any_work(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def work(*_: object) -> None:
        pytest.fail("work was begun")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    cases = [
        (pair[1], None, "is the input"),
        (tmp_path / "full", None, "other things than a model"),
        (tmp_path / "a.safetensors", None, "is a folder"),
        (tmp_path / "a", "kohya", "one file"),
        ("", None, "name is empty"),
    ]
    for out, naming, words in cases:
        with pytest.raises(OutputError, match=words):
            magmerge.extract(
                base=pair[0], model=pair[1], out=out, naming=naming, overwrite=True, progress=work
            )


def test_misspelt_namings_and_dtypes_are_told(base: State, model: State) -> None:
    with pytest.raises(MagmergeError, match="did you mean kohya"):
        magmerge.extract(base=base, model=model, naming="koyha")
    with pytest.raises(MagmergeError, match="float32"):
        magmerge.extract(base=base, model=model, dtype="float31")
