"""magmerge evaluate as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from magmerge.cli import output
from magmerge.evaluation import Scores, TaskScore
from magmerge.evaluation.scores_table import scores_notes, scores_table
from tests.conftest import call
from tests.evaluation.models import bert_suite, save_llama, save_rows, texts


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_suite(tmp_path_factory.mktemp("bert"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    found = call(capsys, "evaluate", *arguments)
    return found.code, found.out, found.err


def test_a_table_with_scores_intervals_and_experts(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, suite.parent / "base", "--suite", suite)
    assert code == 0
    assert "on the test split of tiny" in out
    for word in ("Task of three (three)", "accuracy", "95 % interval", "of expert", "mean"):
        assert word in out
    assert "evaluating" in err
    assert all(len(line) == len(line.rstrip()) for line in out.splitlines())


def test_json_and_file_are_the_same_document(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    code, out, _ = run(
        capsys, suite.parent / "base", "--suite", suite, "--split", "validation",
        "--task", "two", "--threads", 1, "--dtype", "bfloat16", "--json", "--out", file,
    )  # fmt: skip
    assert code == 0
    content = json.loads(out)
    assert content == json.loads(file.read_text())
    assert content["split"] == "validation"
    assert [task["task"] for task in content["tasks"]] == ["two"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "tree"], "did you mean three"),
        (["--split", "dev"], "no split 'dev'"),
        (["--device", "gpu"], "it is cpu, cuda"),
        (["--out", "/nosuch/scores.json"], "its folder does not exist"),
    ],
)
def test_a_users_mistake_is_one_message(
    suite: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, out, err = run(capsys, suite.parent / "base", "--suite", suite, *more)
    assert code == 1
    assert not out
    assert message in err
    code, out, _ = run(capsys, suite.parent / "base", "--suite", suite, "--json", *more)
    assert code == 1
    assert message.partition("'")[0] in json.dumps(json.loads(out)["error"])


def test_several_models_make_one_table(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [suite.parent / "base", suite.parent / "expert"]
    file = tmp_path / "scores.json"
    code, out, _ = run(
        capsys, *models, "--suite", suite, "--workers", 1, "--memory", "1GB", "--out", file
    )
    assert code == 0
    assert "2 models on the test split of tiny" in out
    lines = [line.split() for line in out.splitlines() if line.strip()]
    header = next(line for line in lines if line[0] == "model")
    assert header == ["model", "three", "two", "mean"]
    code, text, _ = run(capsys, *models, "--suite", suite, "--json")
    documents = json.loads(text)
    assert [one["model"] for one in documents] == [str(model) for model in models]
    for document in documents:
        row = next(line for line in lines if line[0] == document["model"])
        scores = [task["score"] for task in document["tasks"]] + [document["mean"]["score"]]
        assert row[1:] == [f"{100 * score:.1f}" for score in scores]
    kept = [[task["score"] for task in one["tasks"]] for one in json.loads(file.read_text())]
    assert kept == [[task["score"] for task in one["tasks"]] for one in documents]


def test_quick_looks_and_the_harness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_llama(tmp_path / "model")
    plain = save_rows(tmp_path / "plain.jsonl", [{"body": text} for text in texts(9)])
    rows = [{"q": text, "choices": ["yes", "no"], "answer": 1} for text in texts(9)]
    asked = save_rows(tmp_path / "asked.jsonl", rows)
    code, out, _ = run(
        capsys, folder, "--perplexity", plain, "--questions", asked, "--text-field", "body",
        "--question-field", "q",
    )  # fmt: skip
    assert code == 0
    assert "of quick look" in out
    assert "perplexity: the lower the better" in out
    other = save_llama(tmp_path / "other", seed=1)
    code, out, _ = run(capsys, folder, other, "--perplexity", plain, "--text-field", "body")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].startswith("2 models on ")
    assert lines[2] == "rows: plain 9"
    seen: list[object] = []

    def harness(models: list, wanted: object, *_: object, **__: object) -> list[Scores]:
        seen.append(wanted)
        row = TaskScore("arc", "arc", "acc", 0.25, None, None, 4, None, 1.0)
        return [Scores("lm-evaluation-harness", "", str(model), (row,), 1.0) for model in models]

    monkeypatch.setattr("magmerge.evaluation.evaluator.run_harness", harness)
    code, out, _ = run(
        capsys, folder, "--lm-eval", "arc, piqa", "--limit", 4, "--num-fewshot", 2,
        "--lm-eval-include", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "on lm-evaluation-harness" in out
    assert "25.0" in out
    (wanted,) = seen
    assert (wanted.tasks, wanted.limit, wanted.num_fewshot) == (("arc", "piqa"), 4, 2)
    code, _, err = run(capsys, folder / "model.safetensors", "--lm-eval", "arc", "--suite", "x")
    assert code == 1
    assert "exclude each other" in err


def test_lines_of_a_log_tell_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 10.0, 130.0, 190.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(now))
    with output.progress_reporter() as progress:
        for done in (0, 1, 13, 20):
            progress("evaluating", done, 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "evaluating: 1/20, about 3 min 10 s left",
        "evaluating: 13/20, about 1 min 10 s left",
        "evaluating: 20/20",
    ]


def test_models_that_are_none_are_told(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, tmp_path / "nosuch", "--suite", suite)[0] == 1
    assert run(capsys, suite.parent / "base", "--suite", tmp_path / "nosuch.yaml")[0] == 1
    assert run(capsys, suite.parent / "base")[0] == 2


def test_the_table_of_mixed_metrics() -> None:
    scores = Scores(
        "mixed",
        "test",
        "model",
        (
            TaskScore("a", "[bold]A", "accuracy", 0.9, 0.8, 0.95, 100, 1.0, 1.0),
            TaskScore("p", "p", "perplexity", 12.0, 11.0, 13.0, 50, 10.0, 2.0),
            TaskScore("m", "m", "matthews", 0.5, 0.4, 0.6, 100, None, 3.0),
        ),
        7.0,
    )
    assert scores.mean == pytest.approx(0.7)
    assert scores["p"].relative == pytest.approx(10 / 12)
    assert scores.relative is None
    columns = {str(c.header): [str(cell) for cell in c.cells] for c in scores_table(scores).columns}
    assert columns["task"] == ["[bold]A (a)", "p", "m", "mean"]
    assert columns["score"] == ["90.0", "12.00", "0.500", "70.0"]
    assert columns["of expert"] == ["90.0 %", "83.3 %", "", ""]
    assert len(scores_notes(scores)) == 3
