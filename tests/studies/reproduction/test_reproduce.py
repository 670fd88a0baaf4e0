"""The whole path in small: from models in published layouts to a table, and on from a stop."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.tiny import write_tiny
from safetensors.torch import load_file, save_file
from tests.quick import slow
from tests.shared import shared_folder

import magmerge
from magmerge.core.errors import MissingExtraError, OutputError, ParameterError, UnknownNameError
from magmerge.studies.reproduction import pipeline_models as places
from magmerge.studies.reproduction.merges import SuiteMeasure
from magmerge.studies.reproduction.pipelines import find_pipeline
from magmerge.studies.reproduction.run_estimate import RunEstimate

# Small experts are less orthogonal than published ones, and magmerge says so.
pytestmark = pytest.mark.filterwarnings("ignore::magmerge.MagmergeWarning")
TASKS = ["eurosat", "mnist"]
TWO = {"methods": ["average", "ties"], "seeds": 2, "alpha": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models and data of two tasks, with their pipeline file."""
    return shared_folder(
        tmp_path_factory, "tiny", lambda folder: write_tiny("clip-b32", folder, TASKS)
    )


@pytest.fixture(scope="module")
def clip(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks, kept for all tests."""
    made = shared_folder(tmp_path_factory, "clip", lambda folder: again(tiny, folder / "run"))
    # A copy: two processes in one run's folder would be in each other's way.
    return shutil.copytree(made / "run", tmp_path_factory.mktemp("clip-copy") / "run")


def small(name: str, folder: Path, **options: Any) -> Any:
    """A run on what `write_tiny` wrote to `folder`."""
    places = {"inputs": folder / "inputs", "data": folder / "data", "threads": 1}
    return magmerge.reproduce(str(folder / f"{name}.yaml"), **{**places, **options})


def again(tiny: Path, out: Path, **options: Any) -> Any:
    return small("clip-b32", tiny, out=out, tasks=["mnist", "eurosat"], **{**TWO, **options})


def test_every_model_has_a_score_on_every_task(tiny: Path, clip: Path) -> None:
    found = again(tiny, clip)
    names = [row.model for row in found.rows]
    merges = [f"{m}{s}" for m in ("average", "ties") for s in ("", "+wsc", "+fsc", "+dsc")]
    assert names == ["zero-shot", "experts", *merges]
    for row in found.rows:
        assert set(row.scores) == {"eurosat", "mnist"}
        assert row.mean is not None
    assert found.rows[1].mean.mean > found.rows[0].mean.mean
    assert len(found.sensitive) <= 3
    assert all(row.published == {} for row in found.rows)
    table = (clip / "table.md").read_text()
    assert f"| average+fsc | {100 * found.rows[4].scores['eurosat'].mean:.1f}" in table
    assert not (clip / "models").exists()


@pytest.mark.slow
def test_figures_are_drawn_of_the_suite_that_it_writes(
    tiny: Path, clip: Path, tmp_path: Path
) -> None:
    found = magmerge.plot(
        "lambda", tmp_path / "lambda.svg", suite=clip / "suite" / "suite.yaml", values=[1.0],
        methods=["average"], calibrate=["fsc"], seeds=1, threads=1,
    )  # fmt: skip
    scores = {row.model: row.mean.mean for row in again(tiny, clip).rows if row.mean is not None}
    drawn = json.loads(found.data.read_text())["points"]
    (plain,) = [point["mean"] for point in drawn if point["calibration"] == "none"]
    assert plain == scores["average"]


def test_what_is_measured_is_not_measured_again(
    tiny: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    content = json.loads((out / "results.json").read_text())
    before = content["cells"]["ties+wsc"].pop("mnist")
    (out / "results.json").write_text(json.dumps(content))
    asked: list[tuple[set[str], str]] = []
    real = SuiteMeasure.measure

    def measure(self: SuiteMeasure, models: Any, expert: str) -> Any:
        asked.append((set(models), expert))
        return real(self, models, expert)

    monkeypatch.setattr(SuiteMeasure, "measure", measure)
    again(tiny, out)
    assert asked == [({"ties+wsc"}, "mnist")]
    after = json.loads((out / "results.json").read_text())["cells"]["ties+wsc"]["mnist"]
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_a_run_that_is_killed_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SuiteMeasure.measure

    def stopped(self: SuiteMeasure, models: Any, task: str) -> Any:
        if task == "mnist":
            raise KeyboardInterrupt
        return real(self, models, task)

    out = tmp_path / "run"
    monkeypatch.setattr(SuiteMeasure, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        again(tiny, out, methods=["average"], spaces=["none"])
    done = json.loads((out / "results.json").read_text())["cells"]
    assert set(done["average"]) == {"eurosat"}
    monkeypatch.setattr(SuiteMeasure, "measure", real)
    found = again(tiny, out, methods=["average"], spaces=["none"])
    assert [row.mean is not None for row in found.rows] == [True] * 3


@pytest.mark.slow
def test_other_settings_are_another_run(tiny: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    with pytest.raises(OutputError, match="other settings: samples"):
        again(tiny, out, samples=3)
    assert again(tiny, out, samples=3, spaces=["none", "fsc"], overwrite=True).samples == 3


@pytest.mark.slow
def test_any_generic_set_ranks_layers_by_drift(tiny: Path, tmp_path: Path) -> None:
    generic = tiny / "data" / "cifar100" / "train"
    found = again(
        tiny, tmp_path / "run", methods=["average"], spaces=["none", "wsc"], generic=generic
    )
    assert len(found.sensitive) == 3


@pytest.mark.slow
def test_controls_share_the_draws_of_fsc(tiny: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(clip, out)
    found = again(tiny, out, methods=["average"], spaces=["fsc", "global", "shuffled"])
    names = {row.model for row in found.rows}
    assert {"average+global", "average+shuffled"} <= names
    cells = json.loads((out / "results.json").read_text())
    assert {"average+global@0", "average+global@1"} <= set(cells["cells"])


@pytest.mark.parametrize("family", ["open_clip", slow("bare")])
def test_experts_may_have_other_names(tiny: Path, clip: Path, tmp_path: Path, family: str) -> None:
    """Experts as pickled open_clip models or as bare vision encoders merge into the same scores."""
    models = tmp_path / "models"
    shutil.copytree(tiny / "inputs", models)
    for hub in ("mnist", "eurosat"):
        folder = models / f"clip-vit-base-patch32_{hub}"
        stored = load_file(folder / "model.safetensors")
        if family == "bare":
            bare = {name: t for name, t in stored.items() if "visual_projection" not in name}
            save_file(bare, folder / "model.safetensors")
            continue
        from magmerge.checkpoints import open_checkpoint
        from magmerge.checkpoints.clip import in_family

        renamed = in_family(open_checkpoint(folder), "open_clip")
        state = {name: renamed.read(name).clone() for name in renamed.specs}
        shutil.rmtree(folder)
        named = {"mnist": "MNIST", "eurosat": "EuroSAT"}[hub]
        place = models / "ViT-B-32" / named
        place.mkdir(parents=True)
        torch.save(state, place / "finetuned.pt")
    found = magmerge.reproduce(
        "clip-b32", tmp_path / "run", inputs=models, data=tiny / "data", alpha=0,
        tasks=["mnist", "eurosat"], methods=["average"], spaces=["none", "wsc"], threads=1,
    )  # fmt: skip
    same = {row.model: row for row in again(tiny, clip).rows}
    for row in found.rows:
        # WSC has rows of visual_projection to calibrate only where experts have one, and the run
        # that is compared with has a list of sensitive layers.
        if row.model in ("zero-shot", "experts", "average"):
            moved = family == "bare" and row.model != "zero-shot"
            assert moved or row.scores == same[row.model].scores
        assert set(row.scores) == {"eurosat", "mnist"}


def test_the_estimate_comes_first(tiny: Path, clip: Path, tmp_path: Path) -> None:
    heard: list[RunEstimate] = []

    def stop(estimate: RunEstimate) -> None:
        heard.append(estimate)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(tiny, clip, announce=stop)
    estimate = heard[0]
    assert estimate.models == 0
    assert estimate.rows == 2 * 64
    assert estimate.download == 0
    assert (estimate.passes, estimate.seconds) == (0, None)
    with pytest.raises(KeyboardInterrupt):
        again(tiny, tmp_path / "run", announce=stop, spaces=["none", "fsc"])
    assert heard[1].models == 2 * (1 + 2)
    assert heard[1].passes == 2 * 64 * (6 + 2)
    assert heard[1].seconds is not None
    assert heard[1].seconds > 0
    with pytest.raises(OutputError, match="GB are free"):
        RunEstimate(1, 1, 1, 0.0, 2e9, 1e9, None).check(clip)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"methods": ["tise"]}, UnknownNameError, "did you mean ties"),
        ({"tasks": ["minst", "dtd"]}, UnknownNameError, "did you mean mnist"),
        ({"tasks": ["mnist"]}, ParameterError, "no merge"),
        ({"samples": 0}, ParameterError, "samples is 0"),
        ({"spaces": ["wcs"]}, UnknownNameError, "did you mean wsc"),
        ({"methods": ["ties"], "params": {"ties": {"density": 9}}}, ParameterError, "density"),
        ({"methods": ["ties"], "params": {"dare": {}}}, ParameterError, "not merged by here"),
        ({"dtype": "int8"}, ParameterError, "int8"),
        ({"device": "nosuch"}, ParameterError, "nosuch"),
        ({"memory": "lots"}, ParameterError, "lots"),
        ({"workers": -3}, ParameterError, "-3 workers"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        magmerge.reproduce("clip-b32", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_without_a_network_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "needed", _missing_library)
    room = shutil._ntuple_diskusage(10**12, 0, 10**12)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: room)
    with pytest.raises(MissingExtraError):
        _missing_library("x", "y")
    with pytest.raises(magmerge.MagmergeError, match="9 of 9 models are missing"):
        magmerge.reproduce("clip-b32", tmp_path / "run")


def _missing_library(module: str, what: str) -> Any:
    raise MissingExtraError(f"{what} needs {module}", remedy="install it")


def test_a_folder_with_other_things_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    precious = tmp_path / "run" / "models" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("p")
    with pytest.raises(OutputError, match="holds other things"):
        again(tiny, tmp_path / "run")
    assert precious.read_text() == "p"


@pytest.mark.parametrize("out", ["models", "models/run", "."])
def test_inputs_are_not_written_into(tiny: Path, tmp_path: Path, out: str) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny / "inputs", models)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="lies together with"):
        magmerge.reproduce(
            "clip-b32", tmp_path / out, inputs=models, data=tiny / "data", tasks=TASKS
        )
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_refused_run_has_changed_nothing(tiny: Path, tmp_path: Path) -> None:
    """Nor has one that is to start anew and does not find its models."""
    options: dict[str, Any] = {
        "data": tiny / "data", "tasks": TASKS, "methods": ["average"],
        "spaces": ["none"], "alpha": 0, "threads": 1,
    }  # fmt: skip
    models, out = tmp_path / "models", tmp_path / "run"
    shutil.copytree(tiny / "inputs", models)
    magmerge.reproduce("clip-b32", out, inputs=models, **options)
    state = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    base = models / "clip-vit-base-patch32" / "model.safetensors"
    stored = load_file(base)
    save_file({name: t * 1.5 for name, t in stored.items()}, base)
    with pytest.raises(OutputError, match="other settings: inputs"):
        magmerge.reproduce("clip-b32", out, inputs=models, **options)
    with pytest.raises(magmerge.MagmergeError, match="no such folder"):
        magmerge.reproduce("clip-b32", out, inputs=tmp_path / "no", overwrite=True, **options)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == state
    magmerge.reproduce("clip-b32", out, inputs=models, overwrite=True, **options)
    name = "vision_model.post_layernorm.weight"
    new = load_file(out / "base" / "model.safetensors")[name]
    assert torch.equal(new, stored[name] * 1.5)


def test_changed_data_is_another_run(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "inputs": tiny / "inputs", "tasks": TASKS, "methods": ["average"],
        "spaces": ["none"], "alpha": 0, "threads": 1,
    }  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(tiny / "data", data)
    magmerge.reproduce("clip-b32", tmp_path / "run", data=data, **options)
    test = data / "mnist" / "test"
    (test / "0").rename(test / "held")
    (test / "1").rename(test / "0")
    (test / "held").rename(test / "1")
    with pytest.raises(OutputError, match="other settings: data"):
        magmerge.reproduce("clip-b32", tmp_path / "run", data=data, **options)


def test_what_was_warned_of_is_said_again(tiny: Path, clip: Path) -> None:
    kept = json.loads((clip / "results.json").read_text())["warnings"]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", magmerge.MagmergeWarning)
        found = again(tiny, clip)
    assert kept
    assert list(found.warnings) == kept
    assert {str(one.message) for one in heard} >= set(kept)


def test_a_pipeline_file_is_checked(tmp_path: Path) -> None:
    file, whole = tmp_path / "own.yaml", find_pipeline("bert").model_dump(mode="json")
    for content, kind, message in (
        (json.dumps({**whole, "kinds": "text"}), UnknownNameError, "did you mean kind"),
        ("title: x\n", ParameterError, "kind"),
        ("- a", ParameterError, "known keys"),
        ("a: [", ParameterError, "not YAML"),
    ):
        file.write_text(content)
        with pytest.raises(kind, match=message):
            magmerge.reproduce(str(file), tmp_path / "run")
    with pytest.raises(ParameterError, match="cannot be read"):
        magmerge.reproduce(str(tmp_path / "none.yaml"), tmp_path / "run")
