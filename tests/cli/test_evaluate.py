"""magmerge evaluate as its users meet it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from magmerge.cli import main
from magmerge.evaluation import Scores, TaskScore
from magmerge.report.scores_table import scores_notes, scores_table
from tests.evaluation.models import bert_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_suite(tmp_path_factory.mktemp("bert"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    sys.argv = ["magmerge", "evaluate", *map(str, arguments)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


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
