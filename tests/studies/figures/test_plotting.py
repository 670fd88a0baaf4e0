"""Figures of a tiny suite: every number beside a plain way to the same, and going on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.studies.figures.suites import TASKS, figure_suite

import magmerge
from magmerge.core.errors import (
    MagmergeError,
    OutputError,
    ParameterError,
)
from magmerge.core.types import LayerRecord
from magmerge.evaluation import open_suite
from magmerge.evaluation.task_suite import Suite
from magmerge.studies.figures.figure_models import FigureModels, figure_inputs
from magmerge.studies.figures.figure_spec import FigureSpec
from magmerge.studies.figures.points import layers_of

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return figure_suite(tmp_path_factory.mktemp("figures"))


def models(suite: Path) -> dict[str, Any]:
    folder = suite.parent
    return {"base": folder / "base", "experts": {name: folder / name for name in TASKS}}


def data(suite: Path) -> dict[str, str]:
    return {name: str(suite.parent / "data" / f"{name}.calibration.jsonl") for name in TASKS}


def means(document: Any) -> dict[tuple[Any, ...], float]:
    return {one.key: one.mean for one in document.points}


def measured(suite: Path, model: Any, **options: Any) -> float:
    return magmerge.evaluate(model, suite=suite, **options).mean or 0.0


def test_samples_are_what_merging_calibrating_and_measuring_give(
    suite: Path, tmp_path: Path
) -> None:
    said: list[tuple[str, int, int]] = []
    found = magmerge.plot(
        "samples", tmp_path / "s.svg", suite=suite, methods=["linear"], values=[4, 2], seeds=2,
        progress=lambda *told: said.append(told),
    )  # fmt: skip
    merged = magmerge.merge(**models(suite), method="average").state_dict()
    expected = {("average", "none", None, None): measured(suite, merged)}
    wsc = magmerge.calibrate(merged, **models(suite), method="wsc")
    expected["average", "wsc", None, None] = measured(suite, wsc)
    for samples in (2, 4):
        for seed in (0, 1):
            for name in ("fsc", "dsc"):
                drawn = magmerge.calibrate(
                    merged, **models(suite), method=name, data=data(suite),
                    samples={"samples": samples, "seed": seed, "max_length": 24},
                )  # fmt: skip
                expected["average", name, samples, seed] = measured(suite, drawn)
    assert means(found.document) == expected
    assert len(set(expected.values())) > 3
    assert said[0] == ("points", 0, 10)
    assert said[-1] == ("points", 10, 10)
    assert found.computed == 10
    content = json.loads(found.data.read_text())
    assert content["points"][0]["scores"].keys() == TASKS.keys()
    assert [task["rows"] for task in content["tasks"]] == [60, 60]
    assert found.document.experts == pytest.approx(
        sum(measured(suite, suite.parent / name, tasks=[name]) for name in TASKS) / 2
    )


def test_what_is_known_is_not_measured_again(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    real = Suite.evaluate_all

    def counting(suite: Suite, states: Mapping[str, Any], **how: Any) -> Any:
        counted.append(len(states))
        return real(suite, states, **how)

    monkeypatch.setattr(Suite, "evaluate_all", counting)
    out, numbers = tmp_path / "s.svg", tmp_path / "s.json"
    options = {"suite": suite, "calibrate": ["fsc"]}
    first = magmerge.plot("samples", out, values=[2], seeds=2, **options)
    whole, drawn = numbers.read_text(), out.read_bytes()
    assert sum(counted) == 3
    again = magmerge.plot("samples", out, values=[2], seeds=2, overwrite=True, **options)
    assert (sum(counted), again.computed) == (3, 0)
    assert (numbers.read_text(), out.read_bytes()) == (whole, drawn)
    content = json.loads(whole)
    content["points"].pop()
    numbers.write_text(json.dumps(content))
    out.unlink()
    mended = magmerge.plot("samples", out, values=[2], seeds=2, **options)
    assert (sum(counted), mended.computed) == (4, 1)
    assert means(mended.document) == means(first.document)
    assert out.read_bytes() == drawn
    more = magmerge.plot("samples", out, values=[2, 3], seeds=1, overwrite=True, **options)
    assert more.computed == 1
    assert more.document.values == (2, 3)
    assert means(first.document).items() <= means(more.document).items()


def test_numbers_of_other_settings_are_kept_unless_asked(suite: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "s.svg", {"suite": suite, "calibrate": ["wsc"], "values": [1]}
    magmerge.plot("lambda", out, **options)
    before = (tmp_path / "s.json").read_text()
    with pytest.raises(OutputError, match="exists already"):
        magmerge.plot("lambda", out, **options)
    out.unlink()
    for change in ({"gate": "off"}, {"dtype": "bfloat16"}, {"tasks": ["two"]},
                   {"params": {"wsc": {"target": "sphere"}}}):  # fmt: skip
        with pytest.raises(OutputError, match="other models or settings"):
            magmerge.plot("lambda", out, **options, **change)
    assert (tmp_path / "s.json").read_text() == before
    magmerge.plot("lambda", out, **options, tasks=["two"], overwrite=True)
    assert json.loads((tmp_path / "s.json").read_text())["tasks"][0]["task"] == "two"
    (tmp_path / "t.json").write_text("[1, 2]")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no file of magmerge's"):
            magmerge.plot("lambda", tmp_path / "t.svg", **options, overwrite=overwrite)
    assert (tmp_path / "t.json").read_text() == "[1, 2]"


def test_an_expert_that_changed_makes_other_numbers(tmp_path: Path) -> None:
    suite = figure_suite(tmp_path / "suite")
    options = {"suite": suite, "calibrate": ["wsc"], "values": [1], "overwrite": False}
    magmerge.plot("lambda", tmp_path / "s.svg", **options)
    (tmp_path / "s.svg").unlink()
    file = suite.parent / "two" / "model.safetensors"
    file.write_bytes((suite.parent / "three" / "model.safetensors").read_bytes())
    with pytest.raises(OutputError, match="other models"):
        magmerge.plot("lambda", tmp_path / "s.svg", **options)


def test_lambda_scales_the_task_vector_and_calibrations_undo_it(
    suite: Path, tmp_path: Path
) -> None:
    found = magmerge.plot(
        "lambda", tmp_path / "l.svg", suite=suite, methods=["average"], gate="off",
        calibrate=["wsc"], values=[0, 0.5, 1, 2],
    )  # fmt: skip
    base = load_file(suite.parent / "base" / "model.safetensors")
    merged = magmerge.merge(**models(suite), method="average").state_dict()
    half = {name: base[name] + 0.5 * (tensor - base[name]) for name, tensor in merged.items()}
    points = means(found.document)
    assert points["average", "none", 0, None] == measured(suite, base)
    assert points["average", "none", 0.5, None] == measured(suite, half)
    assert points["average", "none", 1, None] == measured(suite, merged)
    flat = {points["average", "wsc", at, None] for at in (0.5, 1, 2)}
    assert len(flat) == 1
    assert found.table.headings[2:] == ("0", "0.5", "1", "2")


def test_alpha_goes_through_the_ranking(suite: Path, tmp_path: Path) -> None:
    listed = tmp_path / "layers.json"
    ranking = magmerge.sensitivity(
        **models(suite), data=data(suite)["two"], samples=6, alpha=3, out=listed
    )
    worst = sorted(ranking.layers, key=lambda name: -ranking.layers[name])
    options = {"suite": suite, "methods": ["tsv_m"], "calibrate": ["wsc"], "sensitive": listed}
    found = magmerge.plot("alpha", tmp_path / "a.svg", values=[0, 2, 5], **options)
    merged = magmerge.merge(**models(suite), method="tsv_m").state_dict()
    for alpha in (0, 2, 5):
        gated = magmerge.calibrate(merged, **models(suite), sensitive=worst[:alpha])
        assert means(found.document)["tsv_m", "wsc", alpha, None] == measured(suite, gated)
    with pytest.raises(ParameterError, match=f"100 sensitive layers .* {len(worst)} are ranked"):
        magmerge.plot("alpha", tmp_path / "b.svg", values=[100], **options)
    assert not (tmp_path / "b.svg").exists()


def test_alpha_ranks_by_itself_once(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"suite": suite, "calibrate": ["wsc"], "samples": 4, "mode": "fast"}
    found = magmerge.plot("alpha", tmp_path / "a.svg", values=[0, 1], **options)
    assert found.document.ranked is not None
    assert len(found.document.sensitive) <= found.document.ranked
    monkeypatch.setattr(
        "magmerge.studies.figures.points.sensitivity", lambda **_: pytest.fail("ranked again")
    )
    more = magmerge.plot("alpha", tmp_path / "a.svg", values=[0, 2], overwrite=True, **options)
    assert more.computed == 1


def test_sensitivity_from_a_file_and_computed(suite: Path, tmp_path: Path) -> None:
    computed = magmerge.plot("sensitivity", tmp_path / "s.svg", suite=suite, samples=5, alpha=4)
    assert computed.document.rows == 10
    layers = {one.layer: one.worse for one in computed.document.layers}
    assert list(computed.document.sensitive) == sorted(layers, key=lambda n: -layers[n])[:4]
    listed = tmp_path / "layers.json"
    ranking = magmerge.sensitivity(**models(suite), data=data(suite)["two"], samples=6, out=listed)
    read = magmerge.plot("sensitivity", tmp_path / "r.svg", sensitive=listed, alpha=3)
    assert {one.layer: one.worse for one in read.document.layers} == dict(ranking.layers)
    assert read.document.sensitive == ranking.sensitive[:3]
    with pytest.raises(OutputError, match="would replace"):
        magmerge.plot("sensitivity", tmp_path / "layers.svg", sensitive=listed, overwrite=True)
    (tmp_path / "names.txt").write_text("a\n")
    with pytest.raises(MagmergeError):
        magmerge.plot("sensitivity", tmp_path / "t.svg", sensitive=tmp_path / "names.txt")


def test_coefficients_are_those_of_the_records(suite: Path, tmp_path: Path) -> None:
    layer = "encoder.layer.0.attention.self.query"
    found = magmerge.plot(
        "coefficients", tmp_path / "c.svg", suite=suite, methods=["average", "ties"], samples=3,
        sensitive=[layer],
    )  # fmt: skip
    for run in found.document.points:
        merged = magmerge.merge(**models(suite), method=run.method).state_dict()
        drawn: dict[str, Any] = {}
        if run.calibration == "fsc":
            drawn = {"data": data(suite), "samples": {"samples": 3, "max_length": 24}}
        with warnings.catch_warnings():
            # What FSC's check does not keep is told.
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            result = magmerge.calibrate(
                merged, **models(suite), method=run.calibration, sensitive=[layer], **drawn
            )
        records = {one.name.removesuffix(".weight"): one for one in result.records}
        assert len(run.layers) >= 12
        for one in run.layers:
            record = records[one.layer]
            assert (one.xi, one.xi_free, one.sensitive) == (
                record.xi, record.xi_free, one.layer == layer
            )  # fmt: skip
    assert found.computed == 4
    assert [row[:2] for row in found.table.rows] == [
        ("average", "wsc"), ("average", "fsc"), ("ties", "wsc"), ("ties", "fsc"),
    ]  # fmt: skip
    assert len(found.layers.rows) >= 12


def test_warnings_of_many_models_are_told_once(tmp_path: Path) -> None:
    suite = figure_suite(tmp_path / "suite")
    state = load_file(suite.parent / "three" / "model.safetensors")
    state = {
        name: tensor + 0.001 * torch.ones_like(tensor) if tensor.ndim == 2 else tensor
        for name, tensor in state.items()
    }
    save_file(state, suite.parent / "two" / "model.safetensors")
    with pytest.warns(magmerge.MagmergeWarning) as heard:
        found = magmerge.plot("lambda", tmp_path / "l.svg", suite=suite, calibrate=["wsc"],
                              values=[0.5, 1])  # fmt: skip
    assert len([one for one in heard if one.category is magmerge.MagmergeWarning]) == 1
    assert found.document.warnings


def test_stored_as_the_merge_is(suite: Path) -> None:
    bench = FigureModels(figure_inputs(open_suite(suite)), FigureSpec("samples"))
    name = "encoder.layer.0.output.dense.weight"
    half = {name: torch.ones(16, 24, dtype=torch.bfloat16), "count": torch.tensor(3)}
    scaled = bench.scale(half, 2.0)
    base = load_file(suite.parent / "base" / "model.safetensors")[name]
    assert torch.equal(scaled[name], (base + 2.0 * (1 - base)).to(torch.bfloat16))
    assert scaled["count"] is half["count"]


def test_two_metrics_of_a_task_share_its_samples(tmp_path: Path) -> None:
    """The second entry reads another column, which the calibration rows do not have."""
    path = figure_suite(tmp_path)
    content = yaml.safe_load(path.read_text())
    first = content["tasks"]["three"]
    content["tasks"]["three-f1"] = {**first, "metric": "f1", "text_field": "whole"}
    path.write_text(yaml.safe_dump(content))
    opened = figure_inputs(open_suite(path))
    assert [source.draw.name for source in opened.draws["three"]] == ["three"]
    assert sum(call.rows for call in opened.samples(3, 0)["three"]) == 3


def test_layers_are_in_the_order_of_the_model() -> None:
    """Files hold names letter by letter: block 10 before block 2."""
    names = [f"layers.{number}.weight" for number in (0, 1, 10, 11, 2, 3)]
    records = [
        LayerRecord(
            name, "merge", "matrix", False, xi, xi, xi, xi, 1.0, xi, None, calibrated_by=("wsc",)
        )
        for xi, name in enumerate(names, start=1)
    ]
    found = layers_of(SimpleNamespace(records=records))  # type: ignore[arg-type]
    assert [one.layer for one in found] == [f"layers.{n}" for n in (0, 1, 2, 3, 10, 11)]
    assert [one.xi for one in found] == [1, 2, 5, 6, 3, 4]
