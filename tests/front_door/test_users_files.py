"""Files that magmerge did not write stay, whatever verb replaces the folder that they are in."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeWarning, OutputError
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, random_state, tuned
from tests.evaluation.suites.clips import save_clip

UNRELATED = [*(f"model{i}.safetensors" for i in range(5)), "notes.txt", "paper.pdf"]
MODULES = {"a.q_proj": (6, 4), "a.v_proj": (4, 4)}


def fill(folder: Path, names: list[str] = UNRELATED) -> dict[str, bytes]:
    """Put files of the user's there, and give what all files there hold."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious")
    return state_of(folder)


def state_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def peft_adapter(folder: Path, seed: int) -> Path:
    folder.mkdir()
    write_adapter(folder / "adapter_model.safetensors", MODULES, seed)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def calls(folders: list[Path], tmp_path: Path) -> dict[str, list[object]]:
    """Every verb that writes a folder, without its output."""
    models: list[object] = ["--base", folders[0], "--expert", folders[1], "--expert", folders[2]]
    first, second = (peft_adapter(tmp_path / f"adapter{seed}", seed) for seed in range(2))
    magmerge.merge(base=folders[0], experts=folders[1:3], out=tmp_path / "merged")
    return {
        "merge": ["merge", *models],
        "calibrate": ["calibrate", tmp_path / "merged", *models],
        "adapters": ["merge", "--expert", first, "--expert", second],
        "convert": ["convert", folders[0]],
        "convert adapter": ["convert", first, "--format", "peft"],
        "extract": ["extract", "--base", folders[0], "--model", folders[1]],
    }


VERBS = ["merge", "calibrate", "adapters", "convert", "convert adapter", "extract"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "others",
    [UNRELATED, ["model.safetensors", "thesis.tex"], ["model.safetensors", "unet/precious.txt"]],
    ids=["unrelated", "beside a model", "in a folder"],
)
def test_a_folder_of_other_files_is_refused_and_they_are_listed(
    magmerge_cli: CommandLine,
    calls: dict[str, list[object]],
    tmp_path: Path,
    verb: str,
    others: list[str],
) -> None:
    before = fill(tmp_path / "out", others)
    found = magmerge_cli(*calls[verb], tmp_path / "out", "--yes")
    assert found.code == 1
    assert others[-1].partition("/")[0] in found.message
    assert "never replaced" in found.message
    assert state_of(tmp_path / "out") == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_result_with_a_file_of_the_users_own_is_refused(
    magmerge_cli: CommandLine, calls: dict[str, list[object]], tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    assert magmerge_cli(*calls[verb], out).code == 0
    assert magmerge_cli(*calls[verb], out, "--yes").code == 0
    before = fill(out, ["precious.safetensors", "results/table.csv"])
    found = magmerge_cli(*calls[verb], out, "--yes")
    assert found.code == 1
    assert "precious.safetensors, results/" in found.message
    assert state_of(out) == before


@pytest.mark.parametrize("before", ["merge", "adapters", "extract"])
@pytest.mark.parametrize("after", ["merge", "adapters"])
def test_one_result_may_replace_another_of_any_kind(
    magmerge_cli: CommandLine,
    calls: dict[str, list[object]],
    tmp_path: Path,
    before: str,
    after: str,
) -> None:
    out = tmp_path / "out"
    assert magmerge_cli(*calls[before], out).code == 0
    assert magmerge_cli(*calls[after], out, "--yes").code == 0
    assert (out / "adapter_config.json").exists() == (after == "adapters")
    assert (out / "model.safetensors").exists() == (after == "merge")


def test_shards_that_the_index_tells_are_replaced_and_others_are_not(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    models = {"base": folders[0], "experts": folders[1:], "out": out}
    magmerge.merge(**models, shard_size="4kB")
    assert len(list(out.glob("model-*"))) > 1
    (out / "magmerge.json").unlink()
    (out / "magmerge.yaml").unlink()
    magmerge.merge(**models, overwrite=True)
    assert not list(out.glob("model-*"))
    save_file({"a": torch.zeros(2)}, out / "model-00001-of-00002.safetensors")
    with pytest.raises(OutputError, match="model-00001-of-00002"):
        magmerge.merge(**models, overwrite=True)


def test_what_is_put_there_during_the_run_is_not_lost(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    magmerge.merge(base=folders[0], experts=folders[1:], out=out)

    def intrude(*_: object) -> None:
        (out / "precious.safetensors").write_text("p")

    with pytest.raises(OutputError, match=r"precious\.safetensors"):
        magmerge.merge(
            base=folders[0], experts=folders[1:], out=out, overwrite=True, progress=intrude
        )
    assert (out / "precious.safetensors").read_text() == "p"


def test_files_of_other_programs_beside_a_single_file_stay(
    magmerge_cli: CommandLine, calls: dict[str, list[object]], tmp_path: Path
) -> None:
    out = tmp_path / "one.safetensors"
    (tmp_path / "one.report.html").write_text("my own report")
    found = magmerge_cli(*calls["merge"], out, "--calibrate", "wsc", "--yes")
    assert found.code == 1
    assert "no file of magmerge's" in found.message
    (tmp_path / "one.report.html").unlink()
    (tmp_path / "one.magmerge.json").write_text('{"mine": 1}')
    found = magmerge_cli(*calls["merge"], out, "--yes")
    assert found.code == 1
    assert (tmp_path / "one.magmerge.json").read_text() == '{"mine": 1}'
    (tmp_path / "one.magmerge.json").unlink()
    assert magmerge_cli(*calls["merge"], out, "--calibrate", "wsc").code == 0
    assert magmerge_cli(*calls["merge"], out, "--yes").code == 0
    assert not (tmp_path / "one.report.html").exists()


def test_a_suites_folder_keeps_what_is_not_the_suites(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    clip, out = save_clip(tmp_path / "clip"), tmp_path / "suite"
    call = ["suite", "vision8", out, "--base", clip, "--task", "mnist"]
    assert magmerge_cli(*call).code == 0
    assert magmerge_cli(*call, "--yes").code == 0
    before = fill(out, ["heads/own.safetensors", "data/rows.csv"])
    found = magmerge_cli(*call, "--yes")
    assert found.code == 1
    assert "data/, heads/own.safetensors" in found.message
    assert state_of(out) == before


def test_a_suite_that_a_person_wrote_is_not_replaced(
    magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "suite"
    fill(out, ["data/mine.images", "heads/mine.safetensors"])
    (out / "suite.yaml").write_text(
        "suite: vision8\ntasks:\n"
        "  a: {head: heads/mine.safetensors, data: {test: data/mine.images}}\n"
    )
    before = state_of(out)
    clip = save_clip(tmp_path / "clip")
    found = magmerge_cli("suite", "vision8", out, "--base", clip, "--task", "mnist", "--yes")
    assert found.code == 1
    assert state_of(out) == before


@pytest.mark.parametrize(
    "names",
    [["results.json", "base/model.safetensors"], ["tiny/mine.txt"]],
    ids=str,
)
def test_a_reproduction_takes_no_folder_of_somebody_elses(
    magmerge_cli: CommandLine, tmp_path: Path, names: list[str]
) -> None:
    before = fill(tmp_path / "run", names)
    found = magmerge_cli("reproduce", "bert", tmp_path / "run", "--yes")
    assert found.code == 1
    assert "holds other things" in found.message
    assert state_of(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["thesis.json", "model/model.safetensors", "rows.jsonl"])
def test_a_file_of_results_replaces_only_results(
    magmerge_cli: CommandLine, tmp_path: Path, name: str
) -> None:
    from tests.evaluation.models import save_llama, save_rows

    model = save_llama(tmp_path / "model")
    rows = save_rows(tmp_path / "rows.jsonl", [{"text": "yes no good bad"}] * 3)
    (tmp_path / "thesis.json").write_text('{"mine": 1}')
    before, out = (tmp_path / name).read_bytes(), tmp_path / name
    sensitivity = ["sensitivity", "--base", model, "--expert", model, "--data", rows]
    for call in (
        ["evaluate", model, "--perplexity", rows, "--out", out],
        ["evaluate", model, model, "--perplexity", rows, "--out", out],
        [*sensitivity, "--samples", 2, out],
    ):
        found = magmerge_cli(*call, "--yes")
        assert found.code == 1
        assert "no file of magmerge's" in found.message
        assert out.read_bytes() == before
    call = ["evaluate", model, model, "--perplexity", rows, "--out", tmp_path / "scores.json"]
    assert magmerge_cli(*call).code == 0
    assert magmerge_cli(*call, "--yes").code == 0


def test_a_page_that_is_no_report_stays(magmerge_cli: CommandLine, tmp_path: Path) -> None:
    base = random_state(0)
    magmerge.merge(base=base, experts=[tuned(base, 1)], out=tmp_path / "m.safetensors",
                   calibrate="wsc")  # fmt: skip
    (tmp_path / "mine.html").write_text("<html>")
    call = ["report", tmp_path / "m.safetensors", "--out", tmp_path / "mine.html", "--yes"]
    assert magmerge_cli(*call).code == 1
    assert (tmp_path / "mine.html").read_text() == "<html>"
    assert magmerge_cli("report", tmp_path / "m.safetensors", "--yes").code == 0


def test_what_appears_beside_or_in_place_of_the_output_is_kept(tmp_path: Path) -> None:
    base = random_state(0)
    models = {"base": base, "experts": [tuned(base, 1)], "overwrite": True}

    def record(*_: object) -> None:
        (tmp_path / "s.magmerge.json").write_text("mine")

    with pytest.raises(OutputError, match="no file of magmerge's"):
        magmerge.merge(**models, out=tmp_path / "s.safetensors", progress=record)
    assert (tmp_path / "s.magmerge.json").read_text() == "mine"

    def file(*_: object) -> None:
        (tmp_path / "folder").write_text("mine")

    def folder(*_: object) -> None:
        (tmp_path / "f.safetensors").mkdir(exist_ok=True)

    for out, intrude in (("folder", file), ("f.safetensors", folder)):
        with (
            pytest.warns(MagmergeWarning, match=r"no config\.json")
            if out == "folder"
            else nullcontext(),
            pytest.raises(OutputError, match="something else was put there"),
        ):
            magmerge.merge(**models, out=tmp_path / out, progress=intrude)
    assert (tmp_path / "folder").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_results_of_earlier_versions_are_replaced(folders: list[Path], tmp_path: Path) -> None:
    """Their records did not tell files, no recipe lay beside, a UNet was called as any model."""
    out = tmp_path / "out"
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    models = {"base": folders[0], "experts": folders[1:], "out": out, "overwrite": True}
    magmerge.merge(**models)
    (out / "diffusion_pytorch_model.safetensors").rename(out / "model.safetensors")
    record = json.loads((out / "magmerge.json").read_text())
    del record["files"]
    (out / "magmerge.yaml").unlink()
    (out / "magmerge.json").write_text(json.dumps(record))
    magmerge.merge(**models)
    assert not (out / "model.safetensors").exists()
