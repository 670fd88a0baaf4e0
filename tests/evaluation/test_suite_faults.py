"""What is wrong with a suite, a model or the arguments is one message that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, UnknownNameError
from magmerge.data.rows import DataError
from magmerge.evaluation import open_suite
from tests.evaluation.models import WIDTH, bert_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_suite(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tsks": {}}, UnknownNameError, "did you mean tasks"),
        ({"tasks": {"a": {"data": "x", "metrc": 1}}}, UnknownNameError, "did you mean metric"),
        ({"model": {"clas": "x"}}, UnknownNameError, "did you mean class"),
        ({"model": {"class": "A", "build": "b:c"}}, ParameterError, "exclude each other"),
        ({"tasks": {"a": {"data": "x", "metric": "bleu"}}}, ParameterError, "accuracy"),
        ({"tasks": {"a": {"data": "x", "choices": ["x"]}}}, ParameterError, "at least 2"),
        ({"tasks": {}}, ParameterError, "tasks"),
        ({"base": "nosuch"}, ParameterError, "no folder"),
        ({"max_length": 0}, ParameterError, "max_length"),
    ],
)
def test_faults_of_a_suite_file_are_told(
    suite: Path, tmp_path: Path, change: dict, error: type, message: str
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(suite.read_text()), **change}))
    with pytest.raises(error) as caught:
        open_suite(path)
    assert message in str(caught.value).lower()


def test_suite_files_that_are_none_are_told(tmp_path: Path) -> None:
    for content in (b"\xff", b"a: [", b"[1]", b""):
        (tmp_path / "suite.yaml").write_bytes(content)
        with pytest.raises(MagmergeError):
            open_suite(tmp_path / "suite.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        open_suite(tmp_path / "nosuch.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["tree"]}, "did you mean three"),
        ({"split": "dev"}, "test, validation"),
        ({"dtype": "int8"}, "no floating-point dtype"),
        ({"device": "gpu"}, "the device is 'gpu'"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_wrong_arguments_are_told(suite: Path, arguments: dict, message: str) -> None:
    with pytest.raises(MagmergeError) as caught:
        magmerge.evaluate(suite.parent / "base", suite=suite, **arguments)
    assert message in str(caught.value)


def test_what_does_not_fit_is_told(suite: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    content = yaml.safe_load(suite.read_text())
    content["base"] = str(suite.parent / "base")
    task = content["tasks"]["three"]
    task.update(head=str(head), data=str(suite.parent / "data" / "three.test.jsonl"))
    content["tasks"] = {"three": {key: task[key] for key in ("head", "data")}}
    path = tmp_path / "suite.yaml"

    def evaluate(model: object = suite.parent / "base", **tensors: torch.Tensor) -> None:
        save_file(tensors, head)
        path.write_text(yaml.safe_dump(content))
        magmerge.evaluate(model, suite=path)

    with pytest.raises(DataError, match="the label 2 is none of 2 classes"):
        evaluate(weight=torch.ones(2, WIDTH))
    with pytest.raises(MagmergeError, match=r"gives features \[16\], the head takes \[5\]"):
        evaluate(weight=torch.ones(3, 5))
    with pytest.raises(MagmergeError, match="it is no head"):
        evaluate(weight=torch.ones(3))
    with pytest.raises(MagmergeError, match="is not in tensors in memory"):
        evaluate({"x": torch.ones(1)}, weight=torch.ones(3, WIDTH))
    content["model"] = {"features": "output"}
    with pytest.raises(MagmergeError, match="no logits"):
        evaluate(weight=torch.ones(3, WIDTH))
