"""Nothing that comes with models or data runs a program or Python code unless a user says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from tests.conftest import CommandLine
from tests.evaluation.models import clip_suite, save_bert, save_rows

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
newpath 0 0 moveto 8 8 lineto stroke
%%EOF
"""
PICTURE = ["--samples", 1, "--image-size", 12, "--mean", "0,0,0", "--std", "1,1,1"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once Ghostscript was started."""
    from PIL import EpsImagePlugin

    mark = tmp_path / "ghostscript-was-here"
    gs = tmp_path / "programs" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def test_the_trap_works(program: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        Image.open(BytesIO(EPS)).convert("RGB")
    assert program.exists()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A suite of images with its base, and an expert beside it."""
    suite = clip_suite(tmp_path / "suite", 12)
    base = suite.parent / "base"
    expert = tmp_path / "expert"
    expert.mkdir()
    generator = torch.Generator().manual_seed(1)
    state = {
        name: t + 0.01 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in load_file(base / "model.safetensors").items()
    }
    save_file(state, expert / "model.safetensors")
    (expert / "config.json").write_bytes((base / "config.json").read_bytes())
    return suite


@pytest.fixture(params=["folder", "list", "data set"])
def samples(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Images under the name of another format, in everything that images come in."""
    folder = tmp_path / "images"
    folder.mkdir()
    for ending in ("png", "jpg"):
        (folder / f"a.{ending}").write_bytes(EPS)
    if request.param == "folder":
        return folder
    if request.param == "list":
        return save_rows(tmp_path / "list.images", [{"image": "images/a.png"}])
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": EPS, "path": "a.png"}, {"bytes": EPS, "path": "b.png"}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("verb", ["merge", "calibrate", "sensitivity"])
def test_an_image_starts_no_program(
    magmerge_cli: CommandLine,
    clips: Path,
    samples: Path,
    program: Path,
    tmp_path: Path,
    verb: str,
) -> None:
    base, out = clips.parent / "base", tmp_path / "out"
    models: list[object] = ["--base", base, "--expert", tmp_path / "expert"]
    call = {
        "merge": ["merge", *models, "--calibrate", "fsc", out, "--data", f"expert={samples}"],
        "calibrate": [
            "calibrate", tmp_path / "merged", *models, "--method", "fsc", out,
            "--data", f"expert={samples}",
        ],
        "sensitivity": ["sensitivity", *models, "--data", samples, out],
    }[verb]  # fmt: skip
    magmerge.merge(base=base, experts=[tmp_path / "expert"], out=tmp_path / "merged")
    found = magmerge_cli(*call, *PICTURE)
    assert found.code == 1
    assert "no image that Pillow reads" in found.message
    assert not program.exists()
    assert not out.exists()


@pytest.mark.parametrize("verb", ["evaluate", "plot"])
def test_an_image_of_a_suite_starts_no_program(
    magmerge_cli: CommandLine,
    clips: Path,
    samples: Path,
    program: Path,
    tmp_path: Path,
    verb: str,
) -> None:
    base = clips.parent / "base"
    path = tmp_path / "hostile.yaml"
    head = yaml.safe_load(clips.read_text())["tasks"]["one"]["head"]
    task = {"data": str(samples), "head": str(clips.parent / head), "expert": str(base)}
    shape = {"image_size": 12, "mean": [0, 0, 0], "std": [1, 1, 1]}
    content = {"suite": "h", "base": str(base), **shape, "tasks": {"one": task}}
    path.write_text(yaml.safe_dump(content))
    call = {
        "evaluate": ["evaluate", base, "--suite", path, "--split", "train"],
        "plot": [
            "plot", "sensitivity", tmp_path / "a.svg", "--suite", path, "--expert",
            f"one={tmp_path / 'expert'}", "--data", f"one={samples}",
        ],
    }[verb]  # fmt: skip
    found = magmerge_cli(*call)
    assert found.code == 1
    assert not program.exists()


def test_an_opened_image_starts_no_program(clips: Path, program: Path, tmp_path: Path) -> None:
    import datasets

    base = clips.parent / "base"
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": EPS, "path": None}]}
    data = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(MagmergeError, match="no image that Pillow reads"):
        magmerge.merge(
            base=base,
            experts={"one": tmp_path / "expert"},
            calibrate="fsc",
            data={"one": data},
            samples={"image_size": 12, "mean": [0] * 3, "std": [1] * 3, "samples": 1},
        )
    assert not program.exists()


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module of the current folder; tells whether it was imported."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "code-was-here"
    package = tmp_path / "harmless"
    package.mkdir()
    text = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (package / "__init__.py").write_text(text)
    (package / "model.py").write_text("def make(): raise SystemExit\n")
    yield mark.exists
    for name in [one for one in sys.modules if one.partition(".")[0] == "harmless"]:
        del sys.modules[name]


def test_a_suite_runs_code_only_where_it_is_allowed(
    magmerge_cli: CommandLine, trap: Callable[[], bool], tmp_path: Path
) -> None:
    base = save_bert(tmp_path / "base", classes=2)
    save_rows(tmp_path / "rows.jsonl", [{"text": "yes", "label": 0}, {"text": "no", "label": 1}])
    task = {"data": "rows.jsonl", "expert": "base"}
    content = {"suite": "s", "model": {"build": "harmless.model:make"}, "tasks": {"one": task}}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    figure = ["--suite", path, "--base", base, "--expert", f"one={base}"]
    for call in (
        ["evaluate", base, "--suite", path],
        ["plot", "lambda", tmp_path / "a.svg", *figure],
        ["plot", "sensitivity", tmp_path / "a.svg", *figure],
    ):
        found = magmerge_cli(*call)
        assert found.code == 1
        assert "names code to run" in found.message
        assert "--allow-code" in found.message
    with pytest.raises(ParameterError, match="names code to run"):
        magmerge.evaluate(base, suite=path)
    assert not trap()
    magmerge_cli("evaluate", base, "--suite", path, "--allow-code")
    assert trap()


def test_task_files_of_the_harness_are_code(
    magmerge_cli: CommandLine, trap: Callable[[], bool], tmp_path: Path
) -> None:
    base = save_bert(tmp_path / "base")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a\ndoc_to_text: !function model.make\n")
    found = magmerge_cli("evaluate", base, "--lm-eval", "a", "--lm-eval-include", "tasks")
    assert found.code == 1
    assert "--allow-code" in found.message
    assert not trap()
