"""Paths, names and numbers that are wrong on purpose: an error in words, and nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import (
    MagmergeError,
    NonFiniteError,
    OutputError,
    ParameterError,
    StructureError,
    suggestion,
)
from magmerge.data.text_tables import Separated
from tests.conftest import CommandLine, State
from tests.front_door.test_users_files import peft_adapter


def test_links_that_lead_in_a_circle(folders: list[Path], tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for out in (loop, loop / "out", loop / "out.safetensors"):
        with pytest.raises(OutputError, match="in a circle"):
            magmerge.merge(base=folders[0], experts=folders[1:], out=out)
    for model in (loop, loop / "model"):
        with pytest.raises(MagmergeError, match="no such file or folder"):
            magmerge.merge(base=model, experts=folders[1:])
        with pytest.raises(MagmergeError, match="no such file or folder"):
            magmerge.merge(base=folders[0], experts=[model])
    assert loop.is_symlink()


def test_an_output_in_the_folder_of_an_input(folders: list[Path], tmp_path: Path) -> None:
    adapter = peft_adapter(tmp_path / "adapter", 1)
    for place in (folders[0], folders[1], tmp_path / "link"):
        if place.name == "link":
            place.symlink_to(folders[1])
        for name in ("out", "deep/out", "out.safetensors"):
            with pytest.raises(OutputError, match="lies in the folder of the input"):
                magmerge.merge(base=folders[0], experts=folders[1:], out=place / name)
    with pytest.raises(OutputError, match="lies in the folder of the input"):
        magmerge.merge(experts=[adapter, peft_adapter(tmp_path / "b", 2)], out=adapter / "out")
    assert not list(tmp_path.rglob("out*"))
    # Single files lie side by side, and so may their results.
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number, folder in enumerate(folders[:2]):
        (folder / "model.safetensors").rename(shelf / f"{number}.safetensors")
    magmerge.merge(
        base=shelf / "0.safetensors", experts=[shelf / "1.safetensors"], out=shelf / "o.safetensors"
    )
    assert (shelf / "o.safetensors").is_file()


def test_a_link_at_the_lock_is_not_followed(folders: list[Path], tmp_path: Path) -> None:
    staging = tmp_path / ".out.magmerge-partial"
    staging.mkdir()
    (tmp_path / "precious").write_text("mine")
    (staging / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="a link stands"):
        magmerge.merge(base=folders[0], experts=folders[1:], out=tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"


def test_all_files_of_a_result_have_one_permission(folders: list[Path], tmp_path: Path) -> None:
    for mask in (0o002, 0o022, 0o077):
        out = tmp_path / f"out{mask}"
        before = os.umask(mask)
        try:
            magmerge.merge(base=folders[0], experts=folders[1:], calibrate="wsc", out=out)
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
        assert set(modes.values()) == {0o666 & ~mask}, modes


def test_weights_beyond_what_a_number_can_be(base: State, experts: list[State]) -> None:
    for weights in ([1e308, 1e308], [1.7e308, -1.7e308]):
        with pytest.raises(ParameterError):
            magmerge.merge(
                base=base, experts=experts[:2], method="average", params={"weights": weights}
            )


def test_a_difference_that_overflows_is_no_fault_of_the_expert(
    base: State, experts: list[State], save: object
) -> None:
    name = next(iter(base))
    base[name].view(-1)[0], experts[0][name].view(-1)[0] = -3e38, 3e38
    with pytest.raises(NonFiniteError) as caught:
        magmerge.merge(base=base, experts=experts)
    assert "difference from the base is too large" in caught.value.problem
    kept = magmerge.merge(base=base, experts=experts, ignore=name).state_dict()
    assert torch.equal(kept[name], base[name])


def test_a_pattern_of_thousands_of_parentheses(folders: list[Path], tmp_path: Path) -> None:
    adapter = peft_adapter(tmp_path / "adapter", 1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for pattern in ("(" * 5000 + "a" + ")" * 5000, "(?P<a>" * 200, "a{99999999999}"):
        text = json.dumps({**config, "alpha_pattern": {pattern: 2}})
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(MagmergeError, match=r"pattern|regular expression"):
            magmerge.merge(experts=[adapter, peft_adapter(tmp_path / str(len(pattern)), 2)])


def test_a_table_of_many_columns_and_lists_of_many_names(tmp_path: Path) -> None:
    names = [f"column{number}" for number in range(200_000)]
    file = tmp_path / "wide.csv"
    file.write_text("\n".join([",".join(names), ",".join("1" * len(names))]))
    table = Separated(file)
    assert len(table.columns) == len(names)
    assert len(suggestion("nothing like it", names)) < 800
    assert suggestion("column77", ["column77", "column78"]) == "did you mean column78?"
    faults = StructureError(names, remedy="mend them")
    assert "and 199990 more" in str(faults)
    assert len(str(faults).splitlines()) == 13
    assert len(faults.as_dict()["faults"]) == len(names)


def test_numbers_without_a_point_are_numbers(
    magmerge_cli: CommandLine, folders: list[Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"base: {folders[0]}\nexperts: [{folders[1]}]\nmethod: average\n"
        "params: {weights: [5e-1]}\n"
    )
    assert magmerge.run(recipe).recipe.params["weights"] == [0.5]
    words = ("merge", "--base", folders[0], "--expert", folders[1], "--method", "average")
    told = magmerge_cli(*words, "--set", "weights=[5e-1]", tmp_path / "out")
    assert told.code == 0


def test_a_data_set_that_names_files_outside_itself(folders: list[Path], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from magmerge.data.rows import DataError, SampleDraw
    from magmerge.data.sources import read_samples

    rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(9)]})
    rows.save_to_disk(tmp_path / "secret")
    rows.save_to_disk(tmp_path / "mine")
    state = tmp_path / "mine" / "state.json"
    content = json.loads(state.read_text())
    other = "../secret/" + content["_data_files"][0]["filename"]
    state.write_text(json.dumps({**content, "_data_files": [{"filename": other}]}))
    with pytest.raises(DataError, match="outside its folder"):
        read_samples(tmp_path / "mine", SampleDraw(name="a"))
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "dataset_dict.json").write_text(json.dumps({"splits": ["../secret"]}))
    with pytest.raises(DataError, match="outside its folder"):
        read_samples(tmp_path / "both", SampleDraw(name="a"))


def test_a_missing_tensor_in_many_is_told_shortly(tmp_path: Path) -> None:
    many = {f"layer{number}.weight": torch.ones(1) for number in range(2000)}
    for name, state in (("base", many), ("other", {"else.weight": torch.ones(1)})):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    with pytest.raises(StructureError) as caught:
        magmerge.merge(base=tmp_path / "base", experts=[tmp_path / "other"])
    assert len(str(caught.value).splitlines()) < 40
    assert len(caught.value.faults) >= 2000
