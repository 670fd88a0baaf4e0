"""Named suites from end to end: written, read by evaluate, and wrong in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import magmerge
from magmerge.cli.typer_program import program_with
from magmerge.core.errors import (
    MagmergeError,
    MagmergeWarning,
    OutputError,
    ParameterError,
    UnknownNameError,
)
from magmerge.evaluation.entries import read_suite
from magmerge.evaluation.suites import NamedSuite
from magmerge.evaluation.suites.definitions import definition, task
from tests.evaluation.suites.clips import (
    save_classifier,
    save_clip,
    save_images,
    save_task,
    save_vision,
)
from tests.evaluation.suites.test_folders import dtd_folder

CLASSES = ["River", "SeaLake", "AnnualCrop"]
NUMBERS = [8, 9, 0]


def read(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "suite.yaml").read_text())


def plain_accuracy(model: Path, head: Path, root: Path) -> float:
    """Each test image through the whole CLIP, one by one."""
    from transformers import CLIPImageProcessor, CLIPModel

    clip = CLIPModel.from_pretrained(model).eval()
    processor = CLIPImageProcessor.from_pretrained(model)
    weight = load_file(head)["weight"]
    right = []
    for name, number in zip(CLASSES, NUMBERS, strict=True):
        for path in sorted((root / "test" / name).iterdir()):
            pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                pooled = clip.vision_model(pixel_values=pixels).pooler_output
                embedding = clip.visual_projection(pooled)[0]
            logits = weight @ (embedding / embedding.norm())
            right.append(int(logits.argmax()) == number)
    return sum(right) / len(right)


def test_a_vision_suite_measures_what_the_whole_clip_finds(clip: Path, tmp_path: Path) -> None:
    root = save_task(tmp_path / "data", "EuroSAT", CLASSES, each=5)
    expert = save_clip(tmp_path / "expert", seed=1)
    found = magmerge.suite(
        "vision8", tmp_path / "out", base=clip, data=tmp_path / "data", tasks=["EuroSAT"],
        experts={"eurosat": expert},
    )  # fmt: skip
    assert (found.built, found.warnings, found.tasks[0].classes) == (1, (), 10)
    head = tmp_path / "out" / "heads" / "eurosat.safetensors"
    assert load_file(head)["weight"].shape == (10, 8)
    wanted = {model: plain_accuracy(model, head, root) for model in (clip, expert)}
    for model in (clip, expert):
        score = magmerge.evaluate(model, suite=found.file)["eurosat"]
        assert (score.score, score.expert) == (wanted[model], wanted[expert])
    # Heads are taken from the cache, and the folder can be read from elsewhere.
    again = magmerge.suite(
        "vision8", tmp_path / "again", base=clip, data=tmp_path / "data", tasks=["EuroSAT"]
    )
    assert again.built == 0
    assert "expert" not in read(tmp_path / "again")["tasks"]["eurosat"]
    magmerge.evaluate(clip, suite=again.file, split="train")


def test_bare_vision_encoders_take_the_bases_projection(clip: Path, tmp_path: Path) -> None:
    root = save_task(tmp_path / "data", "EuroSAT", CLASSES, each=5)
    bare = save_vision(tmp_path / "bare", clip)
    options = {"base": clip, "data": tmp_path / "data", "tasks": ["eurosat"]}
    with pytest.raises(ParameterError, match="without visual_projection") as caught:
        magmerge.suite("vision8", tmp_path / "out", experts={"eurosat": bare}, **options)
    assert "--projection base" in caught.value.remedy
    plain = magmerge.suite("vision8", tmp_path / "plain", **options)
    wanted = plain_accuracy(clip, plain.path / "heads" / "eurosat.safetensors", root)
    found = magmerge.suite(
        "vision8", tmp_path / "out", experts={"eurosat": bare}, projection="base", **options
    )
    for model in (bare, clip):
        assert magmerge.evaluate(model, suite=found.file)["eurosat"].score == wanted


def test_every_suite_is_a_suite_file(clip: Path, tmp_path: Path) -> None:
    found = magmerge.suite("vision20", tmp_path / "vision", base=clip)
    entry = read_suite(found.file)
    assert list(entry.tasks) == [one["task"] for one in magmerge.named_suites()[2]["tasks"]]
    for name, one in entry.tasks.items():
        head = load_file(tmp_path / "vision" / str(one.head))["weight"]
        assert len(one.classes or ()) == len(head) == found_classes(found, name)
        assert set(one.data) >= {"train", "test"}
    experts = {
        name: save_classifier(tmp_path / name, "bert", max(len(task("text", name).classes), 1))
        for name in definition("glue8").tasks
    }
    with pytest.warns(MagmergeWarning, match="does not name its labels"):
        found = magmerge.suite("glue8", tmp_path / "glue", base=experts["cola"], experts=experts)
    tasks = read_suite(found.file).tasks
    assert len(tasks) == 8 + 4
    assert tasks["mnli"].pair_field == "hypothesis"
    assert tasks["stsb-spearman"].kind == "values"
    assert tasks["stsb"].question == tasks["stsb-spearman"].question


def found_classes(found: NamedSuite, name: str) -> int:
    return next(one.classes for one in found.tasks if one.name == name)


def test_lists_are_written_and_read(clip: Path, tmp_path: Path) -> None:
    root = dtd_folder(tmp_path / "data")
    found = magmerge.suite("vision8", tmp_path / "out", base=clip, data=root, tasks=["dtd"])
    entry = read(tmp_path / "out")["tasks"]["dtd"]
    assert entry["data"] == {"train": "data/dtd.train.images", "test": "data/dtd.test.images"}
    assert magmerge.evaluate(clip, suite=found.file)["dtd"].count == 2
    assert magmerge.evaluate(clip, suite=found.file, split="train")["dtd"].count == 3


def test_hub_data_is_read_from_its_own_columns_and_splits(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, *config: str, split: str) -> Any:
        asked.append((name, *config, split))
        pictures = [Image.new("RGB", (20, 20), (9 * i, 0, 99)) for i in range(4)]
        columns = {"img": pictures, "fine_label": [0, 99, 5, 6], "image": pictures}
        columns |= {"label": [9, 1, 0, 3], "coarse_label": [0] * 4}
        data = datasets.Dataset.from_dict(columns)
        return data.cast_column("img", datasets.Image()).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = magmerge.suite("vision20", tmp_path / "out", base=clip, tasks=["cifar100", "SVHN"])
    assert magmerge.evaluate(clip, suite=found.file)["cifar100"].count == 4
    magmerge.evaluate(clip, suite=found.file, tasks=["svhn"], split="train")
    assert asked == [
        ("ufldl-stanford/svhn", "cropped_digits", "test"), ("uoft-cs/cifar100", "test"),
        ("ufldl-stanford/svhn", "cropped_digits", "train"),
    ]  # fmt: skip


def test_warnings_of_doubtful_experts_and_splits(clip: Path, tmp_path: Path) -> None:
    expert = tmp_path / "ViT-B-32" / "DTDVal" / "nonlinear_finetuned"
    save_clip(expert)
    with pytest.warns(MagmergeWarning, match="trained on test images of DTD"):
        found = magmerge.suite(
            "vision8", tmp_path / "out", base=clip, tasks=["dtd"], experts={"dtd": expert}
        )
    assert len(found.warnings) == 1
    expert = save_classifier(tmp_path / "sms", "bert", ["ham", "spam"])
    with pytest.warns(MagmergeWarning, match="sms_spam: its hub data has no test split"):
        magmerge.suite(
            "bert4", tmp_path / "text", base=expert, tasks=["sms"], experts={"sms": expert}
        )
    data = read(tmp_path / "text")["tasks"]["sms_spam"]["data"]
    assert data["test"] == "ucirvine/sms_spam:plain_text:train[80%:]"


def test_mistakes(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bert = save_classifier(tmp_path / "bert", "bert", 2)
    mistakes: list[tuple[type[MagmergeError], str, dict[str, Any]]] = [
        (UnknownNameError, "no suite 'vison8'", {"name": "vison8"}),
        (UnknownNameError, "no task 'minst'", {"tasks": ["minst"]}),
        (UnknownNameError, "no task 'minst'", {"experts": {"minst": clip}}),
        (ParameterError, "not among those chosen", {"experts": {"dtd": clip}}),
        (ParameterError, "no such file", {"experts": {"mnist": tmp_path / "nowhere"}}),
        (ParameterError, "two experts", {"experts": {"mnist": clip, "MNIST": clip}}),
        (ParameterError, "the base is no folder", {"base": tmp_path / "nowhere"}),
        (ParameterError, "no preprocessor_config", {"base": bert}),
        (ParameterError, "projection is 'x'", {"projection": "x"}),
        (MagmergeError, "no folder for the task", {"data": tmp_path}),
    ]
    for kind, message, change in mistakes:
        options = {"name": "vision8", "base": clip, "tasks": ["mnist"], **change}
        with pytest.raises(kind, match=message) as caught:
            magmerge.suite(options.pop("name"), out, **options)
        assert caught.value.remedy
    with pytest.raises(ParameterError, match="the task rte has no head"):
        magmerge.suite("glue8", out, base=bert, tasks=["rte"])
    roberta = save_classifier(tmp_path / "roberta", "roberta", 2)
    with pytest.raises(ParameterError, match="of different families"):
        magmerge.suite(
            "glue8", out, base=bert, tasks=["rte", "cola"], experts={"rte": bert, "cola": roberta}
        )
    assert not [path for path in tmp_path.iterdir() if "magmerge" in path.name or path == out]


def test_only_a_suite_is_ever_replaced(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    magmerge.suite("vision8", out, base=clip, tasks=["mnist", "dtd"])
    with pytest.raises(OutputError, match="exists already"):
        magmerge.suite("vision8", out, base=clip, tasks=["mnist"])
    before = (out / "suite.yaml").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("magmerge.evaluation.suites.named_suite.write_suite", fail)
        with pytest.raises(OutputError, match="no space left"):
            magmerge.suite("vision8", out, base=clip, tasks=["mnist"], overwrite=True)
    assert (out / "suite.yaml").read_bytes() == before
    magmerge.suite("vision8", out, base=clip, tasks=["mnist"], overwrite=True)
    assert [path.name for path in (out / "heads").iterdir()] == ["mnist.safetensors"]
    save_images(out / "own", 1)
    with pytest.raises(OutputError, match="other things than a suite"):
        magmerge.suite("vision8", out, base=clip, tasks=["mnist"], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_verb(clip: Path, tmp_path: Path) -> None:
    run = CliRunner()
    app = program_with(["suite"])
    listed = run.invoke(app, ["suite", "--list"])
    assert listed.exit_code == 0
    assert "vision20" in listed.stdout
    assert "sun397 (397)" in listed.stdout
    entries = json.loads(run.invoke(app, ["suite", "--list", "--json"]).stdout)
    assert [one["suite"] for one in entries] == [one["suite"] for one in magmerge.named_suites()]
    call = ["suite", "vision8", str(tmp_path / "out"), "--base", str(clip), "--task", "dtd"]
    call += ["--expert", f"dtd={clip}"]
    done = run.invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tasks"][0]["data"]["test"] == "tanganke/dtd::test"
    done = run.invoke(app, [*call, "--yes"])
    assert "Textures (DTD) (dtd)" in done.stdout
    for wrong in (["suite", "vision8"], [*call, "--expert", "dtd"], [*call, "--expert", "dtd=x"]):
        assert isinstance(run.invoke(app, wrong).exception, ParameterError)
