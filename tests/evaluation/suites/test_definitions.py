"""The data files of the named suites: complete, in order, and of the published sizes."""

from __future__ import annotations

from importlib.resources import files

import pytest
from pydantic import ValidationError

from magmerge.core.errors import UnknownNameError
from magmerge.evaluation.suites import definitions
from magmerge.evaluation.suites.definitions import ImageTask, TextTask, folded

COUNTS = {
    "sun397": 397, "cars": 196, "resisc45": 45, "eurosat": 10, "svhn": 10, "gtsrb": 43,
    "mnist": 10, "dtd": 47, "cifar100": 100, "stl10": 10, "flowers102": 102, "pets": 37,
    "pcam": 2, "fer2013": 7, "emnist": 26, "cifar10": 10, "food101": 101, "fashion_mnist": 10,
    "rendered_sst2": 2, "kmnist": 10,
}  # fmt: skip
TEMPLATES = {
    "sun397": 2, "cars": 8, "resisc45": 18, "eurosat": 3, "svhn": 1, "gtsrb": 3, "mnist": 1,
    "dtd": 8, "cifar100": 18, "stl10": 2, "flowers102": 1, "pets": 1, "pcam": 1, "fer2013": 6,
    "emnist": 1, "cifar10": 18, "food101": 1, "fashion_mnist": 2, "rendered_sst2": 1, "kmnist": 1,
}  # fmt: skip
TEXTS = {
    "ag_news": 4, "rotten_tomatoes": 2, "cola": 2, "sms_spam": 2, "mnli": 3, "mrpc": 2, "qnli": 2,
    "qqp": 2, "rte": 2, "sst2": 2, "stsb": 0,
}  # fmt: skip
KNOWN = {
    ("sun397", 0): "abbey",
    ("sun397", 8): "apartment building outdoor",
    ("sun397", 396): "youth hostel",
    ("cars", 0): "AM General Hummer SUV 2000",
    ("cars", 195): "smart fortwo Convertible 2012",
    ("resisc45", 44): "wetland",
    ("eurosat", 9): "lake or sea",
    ("gtsrb", 14): "stop",
    ("gtsrb", 42): "white circle with gray strike bar indicating no passing for trucks has ended",
    ("dtd", 30): "polka-dotted",
    ("dtd", 46): "zigzagged",
    ("flowers102", 0): "pink primrose",
    ("food101", 100): "waffles",
}


@pytest.mark.parametrize("name", COUNTS)
def test_image_tasks_are_complete(name: str) -> None:
    task = definitions.task("vision", name)
    assert isinstance(task, ImageTask)
    assert (len(task.classes), len(task.templates)) == (COUNTS[name], TEMPLATES[name])
    assert len({folded(one) for one in task.classes}) == len(task.classes)
    assert all(one == one.strip() and "\n" not in one for one in task.classes)
    assert len(set(task.templates)) == len(task.templates)
    assert all(one.format("X").count("X") == 1 for one in task.templates)
    assert task.splits["test"] != task.splits["train"]
    assert task.hub.count("/") == 1


@pytest.mark.parametrize("name", TEXTS)
def test_text_tasks_are_complete(name: str) -> None:
    task = definitions.task("text", name)
    assert isinstance(task, TextTask)
    assert len(task.classes) == TEXTS[name]
    assert set(task.metrics) <= {"accuracy", "f1", "matthews", "pearson", "spearman"}
    assert (task.pair is None) == (name not in {"mnli", "mrpc", "qnli", "qqp", "rte", "stsb"})


def test_classes_are_where_the_labels_count_them() -> None:
    for (name, number), wanted in KNOWN.items():
        assert definitions.task("vision", name).classes[number] == wanted


def test_every_file_belongs_to_a_suite_and_the_suites_grow() -> None:
    found = definitions.definitions()
    used = {"vision": set(), "text": set()}
    for one in found.values():
        used[one.kind] |= set(one.tasks)
        assert len(set(one.tasks)) == len(one.tasks)
    folder = files("magmerge.evaluation.suites") / "tasks"
    for kind, names in used.items():
        assert {f"{name}.yaml" for name in names} == {
            path.name for path in (folder / kind).iterdir()
        }
    assert found["vision14"].tasks[:8] == found["vision8"].tasks
    assert found["vision20"].tasks[:14] == found["vision14"].tasks
    assert [len(found[name].tasks) for name in ("vision8", "vision14", "vision20")] == [8, 14, 20]


def test_spellings_of_all_tasks_of_a_suite_differ() -> None:
    for suite in definitions.definitions().values():
        seen = [
            {folded(text) for text in (name, *definitions.task(suite.kind, name).spellings)}
            for name in suite.tasks
        ]
        assert len(set.union(*seen)) == sum(map(len, seen))


def test_names_are_told_apart_and_misspelt_ones_get_a_suggestion() -> None:
    suite = definitions.definition("vision8")
    assert list(definitions.chosen(suite, ["DTD", "stanford-cars"])) == ["cars", "dtd"]
    with pytest.raises(UnknownNameError, match="eurosat"):
        definitions.chosen(suite, ["eurosta"])
    with pytest.raises(UnknownNameError, match="vision8"):
        definitions.definition("vision9")


def test_sources_say_configuration_and_split() -> None:
    assert definitions.task("vision", "dtd").source("test") == "tanganke/dtd::test"
    assert definitions.task("text", "cola").source("test") == "nyu-mll/glue:cola:validation"


@pytest.mark.parametrize(
    "change",
    [
        {"templates": ["a photo"]},
        {"templates": ["{} and {}"]},
        {"classes": ["a b", "A_b"]},
        {"folders": ["a"]},
        {"splits": {"train": "all", "test": "all"}},
        {"aliases": {"x": "y"}},
        {"lable": "x"},
    ],
)
def test_faults_of_a_data_file_are_seen(change: dict[str, object]) -> None:
    sound = {
        "title": "T",
        "hub": "a/b",
        "splits": {"train": "train", "test": "test"},
        "templates": ["a photo of {}."],
        "classes": ["a", "b"],
    }
    ImageTask.model_validate(sound)
    with pytest.raises(ValidationError):
        ImageTask.model_validate({**sound, **change})
