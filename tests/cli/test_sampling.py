"""Calibration from samples and sensitivity on the command line, as a stranger types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from magmerge.cli.typer_program import program_with
from magmerge.core.errors import MagmergeError
from tests.live.test_compound import family
from tests.live.test_running import IDS, llama

Run = CliRunner()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base, two experts, samples of their tasks as ready inputs."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    for name, expert in family(base).items():
        expert.save_pretrained(tmp_path / name)
        save_file({"input_ids": IDS}, tmp_path / f"{name}.safetensors")
    return tmp_path


def call(folder: Path, *words: str) -> str:
    """What is printed; errors are raised as they are."""
    found = Run.invoke(program_with(words[:1]), [*words], catch_exceptions=True)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def family_of(folder: Path) -> list[str]:
    experts = [f"--expert={folder / name}" for name in ("expert-0", "expert-1")]
    return [f"--base={folder / 'base'}", *experts]


def data_of(folder: Path) -> list[str]:
    names = ("expert-0", "expert-1")
    return [f"--data={name}={folder / name}.safetensors" for name in names] + ["--samples=4"]


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_merge_with_fsc_writes_a_checkpoint_its_record_and_its_report(models: Path) -> None:
    out = models / "out"
    call(models, "merge", *family_of(models), *data_of(models), "--calibrate=fsc", str(out))
    record = json.loads((out / "magmerge.json").read_text())
    assert record["recipe"]["samples"]["samples"] == 4
    assert set(record["recipe"]["samples"]["data"]) == {"expert-0", "expert-1"}
    assert record["uncovered"] == []
    layer = next(one for one in record["layers"] if one["factors"])
    assert layer["factors"][0]["calibrator"] == "fsc"
    assert len(layer["factors"][0]["experts"]) == 2
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_merging_then_calibrating_is_merging_with_calibration(models: Path) -> None:
    common = [*family_of(models), *data_of(models)]
    options = ["--gate=off", "--set=dsc.norm=l1", "--set=wsc.granularity=layer"]
    call(models, "merge", *family_of(models), "--method=average", str(models / "plain"))
    call(models, "calibrate", str(models / "plain"), str(models / "late"), *common, *options,
         "--method=dsc")  # fmt: skip
    call(models, "merge", *common, *options, "--calibrate=dsc", "--method=average",
         str(models / "at-once"))  # fmt: skip
    late, at_once = (load_file(models / n / "model.safetensors") for n in ("late", "at-once"))
    for name, tensor in late.items():
        torch.testing.assert_close(tensor, at_once[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_sensitivity_writes_what_merge_takes(models: Path) -> None:
    listing = models / "layers.json"
    data = f"--data={models / 'expert-0.safetensors'}"
    text = call(models, "sensitivity", *family_of(models), data, "--samples=4", "--alpha=3",
                str(listing))  # fmt: skip
    assert "drift, exact, 21 layers on 4 samples" in text
    assert text.count("*") == 3
    out = models / "out"
    call(models, "merge", *family_of(models), *data_of(models), "--calibrate=fsc",
         f"--sensitive={listing}", str(out))  # fmt: skip
    record = json.loads((out / "magmerge.json").read_text())
    assert sum(layer["sensitive"] for layer in record["layers"]) == 3


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_plan_states_the_memory_of_the_model_that_is_run(models: Path) -> None:
    common = ["plan", *family_of(models), "--json"]
    weights = json.loads(call(models, *common, "--calibrate=wsc"))
    whole = json.loads(call(models, *common, "--calibrate=fsc", *data_of(models)))
    alone = [*data_of(models), "--offload", "--threads=1"]
    blocks = json.loads(call(models, *common, "--calibrate=fsc", *alone))
    size = sum(t.numel() for t in load_file(models / "base" / "model.safetensors").values())
    assert weights["live"] == 0
    assert whole["live"] >= 4 * size
    assert 0 < blocks["live"] < whole["live"]
    assert whole["memory"] >= weights["memory"]
    with pytest.raises(MagmergeError, match="--offload"):
        call(models, *common, "--calibrate=fsc", *data_of(models), "--memory=120MB")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate=fsc"], "fsc needs data"),
        (["--calibrate=fsc", "--data=expert-2=x.jsonl"], "did you mean expert"),
        (["--calibrate=fsc", "--data=expert-0=x.jsonl"], "no data is given for expert-1"),
        (["--calibrate=fsc", "--data=x.jsonl"], "no such file"),
        (["--calibrate=wsc", "--data=x.jsonl"], "no calibration looks at it"),
        (["--calibrate=wsc", "--order=forward"], "only a calibration that looks at inputs"),
        (["--calibrate=fsc", "--calibrate=dsc", "--data=x.jsonl"], "both look at inputs"),
        (["--calibrate=fsc", "--data=a.jsonl", "--data=b.jsonl"], "names no expert"),
        (["--calibrate=fsc", "--data=x.jsonl", "--order=back"], "order"),
        (["--calibrate=dsc", "--data=x.jsonl", "--set=dsc.nrom=l1"], "did you mean norm"),
        (["--calibrate=fsc", "--data=x.jsonl", "--mean=red"], "no numbers"),
    ],
)
def test_mistakes_are_told_before_any_work(models: Path, words: list[str], message: str) -> None:
    with pytest.raises(MagmergeError, match=message):
        call(models, "merge", *family_of(models), *words, str(models / "out"))
    assert not (models / "out").exists()


def test_the_test_split_needs_a_flag(models: Path) -> None:
    save_file({"input_ids": IDS}, models / "rows.test.safetensors")
    words = ["--calibrate=fsc", f"--data={models / 'rows.test.safetensors'}", "--samples=4"]
    with pytest.raises(MagmergeError, match="--allow-test"):
        call(models, "merge", *family_of(models), *words, str(models / "out"))
