"""lm-evaluation-harness on a tiny random Llama, beside the evaluator without it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

import magmerge
from magmerge.core.errors import MagmergeError, MissingExtraError, ParameterError, UnknownNameError
from magmerge.evaluation import harness
from tests.evaluation.models import save_llama, save_rows, texts

pytest.importorskip("lm_eval")

SETS = (["yes", "no"], ["good", "bad", "very good"], ["one two", "three", "text", "a b c"])


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the harness's thousands of task files, which take seconds to read."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path=None, **_: manager(include_path=include_path, include_defaults=False),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    save_llama(folder / "model")
    save_llama(folder / "other", seed=1)
    rows = [
        {"question": text, "choices": SETS[row % 3], "answer": row % len(SETS[row % 3])}
        for row, text in enumerate(texts(30, seed=4))
    ]
    data = save_rows(folder / "asked.jsonl", rows)
    (folder / "tasks").mkdir()
    save_task(folder / "tasks" / "tiny.yaml", "tiny_questions", data)
    return folder


def save_task(path: Path, name: str, data: Path, **more: object) -> None:
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": one, "aggregation": "mean", "higher_is_better": True}
            for one in ("acc", "acc_norm")
        ],
        **more,
    }
    path.write_text(yaml.safe_dump(content))


def asked(place: Path, **more: object) -> dict:
    return {"tasks": ["tiny_questions"], "include": place / "tasks", **more}


def test_its_accuracy_is_that_of_the_evaluator_without_it(place: Path) -> None:
    told: list[tuple[str, int, int]] = []
    models = [place / "model", place / "other"]
    found = magmerge.evaluate(
        models, lm_eval=asked(place), allow_code=True, progress=lambda *one: told.append(one)
    )
    for model, scores in zip(models, found, strict=True):
        own = magmerge.evaluate(model, questions=[place / "asked.jsonl"])["asked"]
        rows = {one.metric: one for one in scores.tasks}
        assert list(rows) == ["acc", "acc_norm"]
        assert rows["acc"].score == own.score
        assert rows["acc"].count == own.count == 30
        assert rows["acc"].low < rows["acc"].score < rows["acc"].high
        assert scores.mean == rows["acc"].score
        assert scores.document()["tasks"][0]["task"] == "tiny_questions"
    assert told[-1][1] == told[-1][2] > 1
    assert {label for label, _, _ in told} == {"evaluating"}


@pytest.mark.usefixtures("own_tasks_only")
def test_limit_and_group(place: Path, tmp_path: Path) -> None:
    save_task(tmp_path / "a.yaml", "tiny_a", place / "asked.jsonl")
    save_task(tmp_path / "b.yaml", "tiny_b", place / "asked.jsonl")
    group = {"group": "tiny_both", "task": ["tiny_a", "tiny_b"]}
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    summed = {**group, "group": "tiny_mean", "aggregate_metric_list": [mean]}
    (tmp_path / "mean.yaml").write_text(yaml.safe_dump(summed))
    found = magmerge.evaluate(
        place / "model",
        lm_eval={"tasks": ["tiny_both"], "include": tmp_path, "limit": 7},
        allow_code=True,
    )
    assert [one.task for one in found.tasks] == ["tiny_a", "tiny_a", "tiny_b", "tiny_b"]
    assert {one.count for one in found.tasks} == {7}
    found = magmerge.evaluate(
        place / "model",
        lm_eval={"tasks": ["tiny_mean"], "include": tmp_path, "limit": 7},
        allow_code=True,
    )
    assert [(one.task, one.metric) for one in found.tasks] == [("tiny_mean", "acc")]


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"tasks": ["tiny_question"]}, UnknownNameError, "did you mean tiny_questions"),
        ({"tasks": ["qqqqqqqq"]}, UnknownNameError, "lm_eval ls tasks"),
        ({"tasks": []}, ParameterError, "no task"),
        ({"limit": 0}, ParameterError, "limit is 0"),
        ({"num_fewshot": -1}, ParameterError, "num_fewshot is -1"),
        ({"limt": 1}, UnknownNameError, "did you mean limit"),
        ({"include": "/nosuch"}, ParameterError, "it is no folder"),
    ],
)
@pytest.mark.usefixtures("own_tasks_only")
def test_wrong_wishes_are_told(place: Path, wanted: dict, error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        magmerge.evaluate(place / "model", lm_eval=asked(place, **wanted) | wanted, allow_code=True)
    assert message in str(caught.value)


@pytest.mark.slow
def test_its_own_tasks_are_known(place: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        magmerge.evaluate(place / "model", lm_eval=["hellaswga"])
    assert "hellaswag" in caught.value.remedy


def test_models_that_are_no_folder_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="this is a file"):
        magmerge.evaluate(
            place / "model" / "model.safetensors", lm_eval=asked(place), allow_code=True
        )
    with pytest.raises(ParameterError, match="no folder with a config"):
        magmerge.evaluate(tmp_path, lm_eval=asked(place), allow_code=True)
    with pytest.raises(ParameterError, match="not a dict"):
        magmerge.evaluate({}, lm_eval=asked(place), allow_code=True)


def test_data_that_cannot_be_had_is_one_message(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_task(tmp_path / "a.yaml", "tiny_gone", tmp_path / "gone.jsonl")
    with pytest.raises(MagmergeError, match="fails on tiny_gone") as caught:
        magmerge.evaluate(
            place / "model", lm_eval={"tasks": ["tiny_gone"], "include": tmp_path}, allow_code=True
        )
    assert caught.value.remedy

    import lm_eval

    def offline(**_: object) -> None:
        raise ValueError("cannot load") from ConnectionError("no route to host")

    monkeypatch.setattr(lm_eval, "simple_evaluate", offline)
    with pytest.raises(MagmergeError, match="cannot be fetched"):
        magmerge.evaluate(place / "model", lm_eval=asked(place), allow_code=True)


def test_without_the_extra_it_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError) as caught:
        magmerge.evaluate(place / "model", lm_eval=asked(place), allow_code=True)
    assert "magmerge[lm-eval]" in caught.value.remedy


def test_rows_of_filters_and_spoilt_values() -> None:
    row = {
        "alias": "x",
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": 0.1,
        "bleu,none": 3.0,
        "bleu_stderr,none": "N/A",
    }
    assert list(harness._metrics(row)) == [
        ("exact_match (strict-match)", 0.5, 0.1), ("bleu", 3.0, None)
    ]  # fmt: skip
    with pytest.warns(magmerge.MagmergeWarning, match="acc is nan"):
        assert not list(harness._rows({"results": {"x": {"acc,none": float("nan")}}}, ["x"], 1.0))
