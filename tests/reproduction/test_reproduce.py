"""The whole path in small: from models in published layouts to a table, and on from a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import magmerge
from magmerge.errors import MissingExtraError, OutputError, ParameterError, UnknownNameError
from magmerge.reproduction import inputs
from magmerge.reproduction.estimating import Estimate
from magmerge.reproduction.measuring import SuiteMeasure

pytestmark = pytest.mark.slow
TWO = {"methods": ["average", "ties"], "seeds": 2, "alpha": 3}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks, kept for all tests of this file."""
    out = tmp_path_factory.mktemp("clip") / "run"
    magmerge.reproduce("clip-b32", out, tiny=True, tasks=["mnist", "eurosat"], threads=1, **TWO)
    return out


def again(out: Path, **options: Any) -> Any:
    return magmerge.reproduce(
        "clip-b32", out, tiny=True, tasks=["mnist", "eurosat"], threads=1, **{**TWO, **options}
    )


def test_every_model_has_a_score_on_every_task(clip: Path) -> None:
    found = again(clip)
    names = [row.model for row in found.rows]
    merges = [f"{m}{s}" for m in ("average", "ties") for s in ("", "+wsc", "+fsc", "+dsc")]
    assert names == ["zero-shot", "experts", *merges]
    for row in found.rows:
        assert set(row.scores) == {"eurosat", "mnist"}
        assert row.mean is not None
    assert found.rows[1].mean.mean > found.rows[0].mean.mean
    assert len(found.sensitive) <= 3
    assert found.rows[2].published == {1: 66.5, 2: 66.0}
    table = (clip / "table.md").read_text()
    assert f"| average+fsc | {100 * found.rows[4].scores['eurosat'].mean:.1f}" in table
    assert not (clip / "models").exists()


def test_figures_are_drawn_of_the_suite_that_it_writes(clip: Path, tmp_path: Path) -> None:
    found = magmerge.plot(
        "lambda", tmp_path / "lambda.svg", suite=clip / "suite" / "suite.yaml", values=[1.0],
        methods=["average"], calibrate=["fsc"], seeds=1, threads=1,
    )  # fmt: skip
    scores = {row.model: row.mean.mean for row in again(clip).rows if row.mean is not None}
    drawn = json.loads(found.data.read_text())["points"]
    (plain,) = [point["mean"] for point in drawn if point["calibration"] == "none"]
    assert plain == scores["average"]


def test_what_is_measured_is_not_measured_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    content = json.loads((out / "results.json").read_text())
    before = content["cells"]["ties+wsc"].pop("mnist")
    (out / "results.json").write_text(json.dumps(content))
    asked: list[tuple[set[str], str]] = []
    real = SuiteMeasure.measure

    def measure(self: SuiteMeasure, models: Any, task: str) -> Any:
        asked.append((set(models), task))
        return real(self, models, task)

    monkeypatch.setattr(SuiteMeasure, "measure", measure)
    again(out)
    assert asked == [({"ties+wsc"}, "mnist")]
    after = json.loads((out / "results.json").read_text())["cells"]["ties+wsc"]["mnist"]
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_a_run_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SuiteMeasure.measure

    def stopped(self: SuiteMeasure, models: Any, task: str) -> Any:
        if task == "mnist":
            raise KeyboardInterrupt
        return real(self, models, task)

    out = tmp_path / "run"
    monkeypatch.setattr(SuiteMeasure, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        again(out, methods=["average"], spaces=["none"])
    done = json.loads((out / "results.json").read_text())["cells"]
    assert set(done["average"]) == {"eurosat"}
    monkeypatch.setattr(SuiteMeasure, "measure", real)
    found = again(out, methods=["average"], spaces=["none"])
    assert [row.mean is not None for row in found.rows] == [True] * 3


def test_other_settings_are_another_run(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    with pytest.raises(OutputError, match="other settings: samples"):
        again(out, samples=3)
    assert again(out, samples=3, spaces=["none", "fsc"], overwrite=True).samples == 3


def test_any_generic_set_ranks_layers_by_drift(clip: Path, tmp_path: Path) -> None:
    generic = clip / "tiny" / "data" / "cifar100" / "train"
    found = again(tmp_path / "run", methods=["average"], spaces=["none", "wsc"], generic=generic)
    assert len(found.sensitive) == 3


def test_controls_share_the_draws_of_fsc(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    found = again(out, methods=["average"], spaces=["fsc", "global", "shuffled"])
    names = {row.model for row in found.rows}
    assert {"average+global", "average+shuffled"} <= names


@pytest.mark.parametrize("family", ["open_clip", "bare"])
def test_experts_may_have_other_names(clip: Path, tmp_path: Path, family: str) -> None:
    """Experts as pickled open_clip models or as bare vision encoders merge into the same scores."""
    models = tmp_path / "models"
    shutil.copytree(clip / "tiny" / "inputs", models)
    for hub in ("mnist", "eurosat"):
        folder = models / f"clip-vit-base-patch32_{hub}"
        stored = load_file(folder / "model.safetensors")
        if family == "bare":
            bare = {name: t for name, t in stored.items() if "visual_projection" not in name}
            from safetensors.torch import save_file

            save_file(bare, folder / "model.safetensors")
            continue
        from magmerge.checkpoints import open_checkpoint
        from magmerge.clip_names import in_family

        renamed = in_family(open_checkpoint(folder), "open_clip")
        state = {name: renamed.read(name).clone() for name in renamed.specs}
        shutil.rmtree(folder)
        named = {"mnist": "MNIST", "eurosat": "EuroSAT"}[hub]
        place = models / "ViT-B-32" / named
        place.mkdir(parents=True)
        torch.save(state, place / "finetuned.pt")
    found = magmerge.reproduce(
        "clip-b32", tmp_path / "run", inputs=models, data=clip / "tiny" / "data", alpha=0,
        tasks=["mnist", "eurosat"], methods=["average"], spaces=["none", "wsc"], threads=1,
    )  # fmt: skip
    same = {row.model: row for row in again(clip).rows}
    for row in found.rows:
        if family == "open_clip" and row.model != "average+wsc":
            assert row.scores == same[row.model].scores
        assert set(row.scores) == {"eurosat", "mnist"}


def test_the_estimate_comes_first(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Estimate] = []

    def stop(estimate: Estimate) -> None:
        heard.append(estimate)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(clip, announce=stop)
    (estimate,) = heard
    assert estimate.models == 1 + 2 * (1 + 1 + 2 + 2)
    assert estimate.rows == 2 * 64
    assert estimate.download == 0
    assert estimate.seconds is not None
    assert estimate.seconds > 0
    with pytest.raises(OutputError, match="GB are free"):
        Estimate(1, 1, 1, 0.0, 2e9, 1e9, None).check(clip)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"methods": ["tise"]}, UnknownNameError, "did you mean ties"),
        ({"tasks": ["minst", "dtd"]}, UnknownNameError, "did you mean mnist"),
        ({"tasks": ["mnist"]}, ParameterError, "no merge"),
        ({"samples": 0}, ParameterError, "samples is 0"),
        ({"spaces": ["wcs"]}, UnknownNameError, "did you mean wsc"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        magmerge.reproduce("clip-b32", tmp_path / "run", tiny=True, **options)
    assert not (tmp_path / "run").exists()


def test_text_experts_keep_their_heads(tmp_path: Path) -> None:
    found = magmerge.reproduce(
        "bert", tmp_path / "run", tiny=True, methods=["average"], spaces=["none", "fsc"],
        alpha=2, threads=1,
    )  # fmt: skip
    assert found.tasks == ("ag_news", "rotten_tomatoes", "cola", "cola-accuracy", "sms_spam")
    scores = {row.model: row.mean.mean for row in found.rows if row.mean is not None}
    assert scores["experts"] > 0.8 > scores["zero-shot"]


def test_encoders_without_a_pooler_are_measured(tmp_path: Path) -> None:
    found = magmerge.reproduce(
        "glue", tmp_path / "run", tiny=True, tasks=["cola", "rte", "stsb"], methods=["average"],
        spaces=["none"], threads=1,
    )  # fmt: skip
    assert {"stsb", "stsb-spearman"} <= set(found.tasks)
    assert found.rows[1].mean is not None


def test_language_models_are_measured_by_the_harness(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    found = magmerge.reproduce(
        "llama", tmp_path / "run", tiny=True, methods=["average"], spaces=["none", "fsc"],
        alpha=0, threads=1,
    )  # fmt: skip
    rows = {row.model: row for row in found.rows}
    assert rows["experts"].mean.mean > rows["zero-shot"].mean.mean
    assert set(rows) == {"zero-shot", "experts", "average", "average+fsc"}
    with pytest.raises(ParameterError, match="controls are tensors in memory"):
        magmerge.reproduce("llama", tmp_path / "run", tiny=True, spaces=["global"])


def test_without_a_network_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "needed", _missing_library)
    with pytest.raises(MissingExtraError):
        _missing_library("x", "y")
    with pytest.raises(magmerge.MagmergeError, match="9 of 9 models are missing"):
        magmerge.reproduce("clip-b32", tmp_path / "run")


def _missing_library(module: str, what: str) -> Any:
    raise MissingExtraError(f"{what} needs {module}", remedy="install it")
