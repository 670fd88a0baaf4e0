"""Statistics of an expert's inputs: the same merge as from its samples, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import CheckpointError, MagmergeError, ParameterError, StructureError
from tests.conftest import CommandLine
from tests.live.test_compound import family
from tests.live.test_running import folders, llama

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base and two experts in folders, ready inputs of each, and each one's statistics."""
    folder = tmp_path_factory.mktemp("statistics")
    base, experts = folders(folder, llama(), family(llama(), 2))
    data, files = {}, {}
    for place, (name, path) in enumerate(experts.items()):
        torch.manual_seed(place)
        data[name] = str(folder / f"{name}-rows.safetensors")
        save_file({"input_ids": torch.randint(0, 40, (6, 9))}, data[name])
        files[name] = str(folder / f"{name}.statistics.safetensors")
        done = magmerge.statistics(
            base=base, experts={name: path}, data=data[name], samples=4, out=files[name]
        )
        assert done.samples == 4
        assert set(done.layers.values()) == {36}
    return {"base": base, "experts": experts, "data": data, "files": files}


def merged(gathered: dict[str, Any], **options: Any) -> magmerge.Result:
    told = {"base": gathered["base"], "experts": gathered["experts"], "method": "tsv_m"}
    return magmerge.merge(**{**told, "calibrate": "regmean", **options})


def test_a_merge_from_statistics_is_the_merge_from_samples(
    gathered: dict[str, Any], tmp_path: Path
) -> None:
    samples = merged(gathered, data=gathered["data"], samples=4).state_dict()
    result = merged(gathered, statistics=gathered["files"], out=tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in samples.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)
    assert result.recipe.statistics == gathered["files"]
    record = json.loads((tmp_path / "out" / "magmerge.json").read_text())
    assert record["statistics"].keys() == gathered["files"].keys()
    assert all(one["digest"].startswith("blake3:") for one in record["statistics"].values())
    again = magmerge.run(tmp_path / "out", tmp_path / "again")
    assert again.recipe == result.recipe
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_the_file_tells_of_what_it_is_made(gathered: dict[str, Any]) -> None:
    name, path = next(iter(gathered["files"].items()))
    with safe_open(path, "pt") as file:
        told = file.metadata()
        for layer in file.keys():  # noqa: SIM118 - it is no mapping
            sums = file.get_tensor(layer)
            assert sums[-1, -1] == 36
            assert torch.equal(sums, sums.T)
    assert told["expert"] == name
    assert told["rows"] == "4"
    assert json.loads(told["samples"])["data"] == {name: gathered["data"][name]}
    assert json.loads(told["models"]).keys() == {"base", "expert"}


def test_what_does_not_go_together_is_refused(gathered: dict[str, Any], tmp_path: Path) -> None:
    one, two = gathered["files"]
    files = gathered["files"]
    odd = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(2)}, odd)
    wide = tmp_path / "wide.safetensors"
    sums = {name: torch.zeros(5, 5) for name in load_file(files[one])}
    with safe_open(files[one], "pt") as file:
        save_file(sums, wide, file.metadata())
    cases: list[tuple[type[MagmergeError], str, dict[str, Any]]] = [
        (ParameterError, "no statistics are given", {"statistics": {one: files[one]}}),
        (ParameterError, "both given", {"statistics": files, "data": gathered["data"]}),
        (ParameterError, "no file of statistics", {"statistics": files, "calibrate": "featcal"}),
        (ParameterError, "no calibration", {"statistics": files, "calibrate": "wsc"}),
        (MagmergeError, "no expert", {"statistics": {**files, "odd": files[one]}}),
        (CheckpointError, "no such file", {"statistics": {**files, two: "/nowhere"}}),
        (CheckpointError, "holds no statistics", {"statistics": {**files, two: str(odd)}}),
        (StructureError, "sums of 4 features", {"statistics": {**files, two: str(wide)}}),
        (ParameterError, "another model", {"statistics": {one: files[two], two: files[one]}}),
        (ParameterError, "offload", {"statistics": files, "offload": True}),
    ]
    for kind, words, options in cases:
        with pytest.raises(kind, match=words):
            merged(gathered, **options)


def test_a_layer_that_a_file_lacks_stays_as_merged_and_is_told(
    gathered: dict[str, Any], tmp_path: Path
) -> None:
    one, path = next(iter(gathered["files"].items()))
    short = tmp_path / "short.safetensors"
    with safe_open(path, "pt") as file:
        told = file.metadata()
    held = load_file(path)
    lacking = next(iter(held))
    del held[lacking]
    save_file(held, short, told)
    result = merged(gathered, statistics={**gathered["files"], one: str(short)})
    plain = merged(gathered, calibrate=None).state_dict()
    assert torch.equal(result.state_dict()[lacking], plain[lacking])
    assert [u.layer for u in result.account.uncovered] == [lacking]


def test_from_the_command_line(
    gathered: dict[str, Any], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    files = []
    for name, path in gathered["experts"].items():
        out = tmp_path / f"{name}.safetensors"
        outcome = magmerge_cli("statistics", out, "--base", gathered["base"], "--expert",
                               f"{name}={path}", "--data", gathered["data"][name],
                               "--samples", "4")  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert load_file(out).keys() == load_file(gathered["files"][name]).keys()
        files += ["--statistics", f"{name}={out}", "--expert", f"{name}={path}"]
    words = ["--base", gathered["base"], "--calibrate", "regmean", *files]
    assert magmerge_cli("merge", *words, tmp_path / "out").code == 0
    outcome = magmerge_cli("merge", *words[:4], *files[2:], tmp_path / "other")
    assert outcome.code == 1
    assert "--statistics" in outcome.err
