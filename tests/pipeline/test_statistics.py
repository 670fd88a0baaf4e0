"""Statistics of an expert's inputs: the same merge as from its samples, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints.input_sums import FORM
from magmerge.core.errors import (
    CheckpointError,
    MagmergeError,
    NonFiniteError,
    OutputError,
    ParameterError,
    StructureError,
)
from magmerge.pipeline.verify import Verification
from tests.conftest import CommandLine
from tests.front_door.models import with_lora
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
        (ParameterError, "no model is run", {"statistics": files, "offload": True}),
        (ParameterError, "no model is run", {"statistics": files, "order": "forward"}),
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


def saved(path: Path, source: str, change: Callable[[Any], Any], **header: str) -> str:
    """A file of statistics with other sums, or another header."""
    with safe_open(source, "pt") as file:
        told = {**file.metadata(), **header}
    save_file({n: change(v) for n, v in load_file(source).items()}, path, told)
    return str(path)


def test_hostile_files_are_refused_in_words(gathered: dict[str, Any], tmp_path: Path) -> None:
    one, source = next(iter(gathered["files"].items()))

    def refused(kind: type[MagmergeError], words: str, path: str) -> None:
        with pytest.raises(kind, match=words):
            merged(gathered, statistics={**gathered["files"], one: path})

    out = tmp_path / "hostile.safetensors"
    for bad in (float("nan"), float("inf")):
        refused(NonFiniteError, "not finite", saved(out, source, lambda v, bad=bad: v + bad))
    refused(CheckpointError, "are negative", saved(out, source, lambda v: -v))
    for dtype in (torch.int64, torch.complex64, torch.float64):
        refused(CheckpointError, "and F32", saved(out, source, lambda v, d=dtype: v.to(d)))
    refused(CheckpointError, "are square", saved(out, source, lambda v: v[1:].contiguous()))
    for models in ("{", "[]", "5", '{"expert": ["a"]}', '{"expert": {"a": []}}', "[" * 100_000):
        path = saved(out, source, lambda v: v, models=models)
        refused(CheckpointError, "of which models", path)
    for metadata in ([], None, "a", {"magmerge": 1}):
        text = json.dumps({"__metadata__": metadata}).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        out.write_bytes(len(text).to_bytes(8, "little") + text)
        refused(CheckpointError, "safetensors|no statistics", str(out))
    out.write_bytes((1 << 60).to_bytes(8, "little"))
    refused(CheckpointError, "not a sound safetensors file", str(out))


def test_sums_of_a_layers_outputs_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Linear(10, 6))
    models, files, common = {}, {}, {"base": base.state_dict()}
    for place in range(2):
        models[f"e{place}"] = {
            n: v + 0.1 * torch.randn_like(v) for n, v in base.state_dict().items()
        }
        files[f"e{place}"] = str(tmp_path / f"e{place}.safetensors")
        sums = {"0.weight": torch.eye(11), "1.weight": torch.eye(11)}
        save_file(sums, files[f"e{place}"], {"magmerge": FORM})
    with pytest.raises(StructureError, match=r"0\.weight has sums of 10 features, the layer has 6"):
        magmerge.merge(experts=models, calibrate="regmean", statistics=files, **common)


def test_where_no_layer_has_sums_nothing_is_merged(
    gathered: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "none.safetensors"
    save_file({}, path, {"magmerge": FORM})
    files = {**gathered["files"], next(iter(gathered["files"])): str(path)}
    with pytest.raises(MagmergeError, match="no layer of this model has sums"):
        merged(gathered, statistics=files, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_expert_is_known_by_its_content(gathered: dict[str, Any], tmp_path: Path) -> None:
    name, folder = next(iter(gathered["experts"].items()))
    copy = tmp_path / "copy.safetensors"
    shutil.copy(Path(folder) / "model.safetensors", copy)
    result = merged(
        gathered, experts={**gathered["experts"], name: copy}, statistics=gathered["files"]
    )
    told = merged(gathered, statistics=gathered["files"]).state_dict()
    assert all(torch.equal(tensor, told[n]) for n, tensor in result.state_dict().items())


def test_the_base_of_an_adapter_is_compared_too(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    other = family(llama(), 1)["expert-0"]
    other.save_pretrained(tmp_path / "other")
    experts, files = {}, {}
    for place, name in enumerate("xy"):
        with_lora(base, place, target_modules=["q_proj"]).save_pretrained(tmp_path / name)
        experts[name], files[name] = tmp_path / name, tmp_path / f"{name}.safetensors"
        rows = [{"input_ids": torch.randint(0, 40, (2, 9))}]
        magmerge.statistics(
            base=tmp_path / "base", experts={name: experts[name]}, data={name: rows},
            out=files[name],
        )  # fmt: skip
    common: dict[str, Any] = {"experts": experts, "calibrate": "regmean", "statistics": files}
    magmerge.merge(base=tmp_path / "base", **common)
    with pytest.raises(ParameterError, match="another base than"):
        magmerge.merge(base=tmp_path / "other", **common)


def test_inputs_are_never_replaced(gathered: dict[str, Any], tmp_path: Path) -> None:
    base, expert = (tmp_path / name for name in ("base", "expert"))
    shutil.copytree(gathered["base"], base)
    shutil.copytree(gathered["experts"]["expert-0"], expert)
    data = tmp_path / "rows.safetensors"
    shutil.copy(gathered["data"]["expert-0"], data)
    outs = [base / "model.safetensors", expert / "model.safetensors", expert / "new", data]
    before = [out.read_bytes() if out.exists() else None for out in outs]
    for out in outs:
        with pytest.raises(OutputError, match="the input"):
            magmerge.statistics(
                base=base, experts={"a": expert}, data=str(data), out=out, overwrite=True
            )
    assert [out.read_bytes() if out.exists() else None for out in outs] == before


def test_statistics_that_changed_or_are_gone_are_told(
    gathered: dict[str, Any], tmp_path: Path
) -> None:
    files = {
        n: shutil.copy(path, tmp_path / Path(path).name) for n, path in gathered["files"].items()
    }
    out, one = tmp_path / "out", Path(next(iter(files.values())))
    merged(gathered, statistics=files, out=out)

    def faults(found: Verification) -> dict[str, str]:
        return {check.name: check.faults[0].text for check in found.checks if check.faults}

    found = magmerge.verify(out)
    assert found.sound
    assert "5 files" in next(check.seen for check in found.checks if check.name == "inputs")
    held = load_file(one)
    with safe_open(one, "pt") as file:
        told = file.metadata()
    save_file({name: sums * 2 for name, sums in held.items()}, one, told)
    assert str(one) in faults(magmerge.verify(out))["inputs"]
    one.unlink()
    found = magmerge.verify(out, against=out / "magmerge.yaml")
    assert "no such file of statistics" in faults(found)["recipe"]
    assert {"finite", "checksums"} <= {check.name for check in found.checks}
