"""magmerge tune as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.studies.tuning.recipes import recipe, tuning_suite

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = tuning_suite(tmp_path_factory.mktemp("tuning"))
    (suite.parent / "recipe.yml").write_text(
        recipe(suite.parent, method="task_arithmetic", params={"lambda": "!tune [0.1, 2.5]"})
    )
    return suite


def test_lines_of_trials_and_what_came_of_them(
    suite: Path, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    path, out = suite.parent / "recipe.yml", tmp_path / "out"
    told = magmerge_cli("tune", path, out, "--suite", suite, "--trials", 4)
    assert told.code == 0
    lines = [line for line in told.err.splitlines() if line.startswith("trial ")]
    assert len(lines) == 4
    assert lines[0].startswith("trial 0: params.lambda 0.3: 0.")
    assert "(best 0." in lines[3]
    assert "mean accuracy of 2 tasks, on 120 held-out rows" in told.out
    assert "a: all 60 rows of its validation split" in told.out
    for word in ("default 0.", "best    0.", "gain    ", "(standard error)", f"wrote {out}"):
        assert word in told.out
    assert "measure it on test rows" in told.out
    # What it says to do.
    best = tmp_path / "out.tune" / "best.yml"
    assert best.read_text().startswith(f"# {path} as magmerge tune found it")
    assert magmerge_cli("merge", best, tmp_path / "again").code == 0
    assert magmerge_cli("verify", out).code == 0
    longer = magmerge_cli(
        "tune", path, out, "--suite", suite, "--trials", 5, "--resume", "--yes", "--json"
    )
    assert longer.code == 0
    content = longer.json
    assert [trial["number"] for trial in content["trials"]] == [0, 1, 2, 3, 4]
    assert content["path"] == str(out)


def test_mistakes_in_one_message(suite: Path, tmp_path: Path, magmerge_cli: CommandLine) -> None:
    path = suite.parent / "recipe.yml"
    assert magmerge_cli("tune", path).code == 2
    told = magmerge_cli("tune", path, "--suite", suite, "--metric", "best")
    assert (told.code, "no metric 'best'" in told.message) == (1, True)
    told = magmerge_cli("tune", path.with_name("recip.yml"), "--suite", suite)
    assert (told.code, "did you mean recipe.yml" in told.message) == (1, True)
    told = magmerge_cli("tune", path, "--unlabelled", "x=", "--json")
    assert (told.code, told.json["error"]["problem"]) == (1, "--unlabelled x=")


def test_a_search_within_noise_says_so(
    suite: Path, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    path = tmp_path / "recipe.yml"
    mark = "!tune {choices: [0.29, 0.3, 0.31], default: 0.3}"
    path.write_text(recipe(suite.parent, method="task_arithmetic", params={"lambda": mark}))
    told = magmerge_cli("tune", path, "--suite", suite, "--rows", 10, "--trials", 4)
    assert told.code == 0
    assert "within noise" in told.out or "no trial is better than the default" in told.out
    assert "10 rows of its validation split, drawn by seed 0" in told.out
    assert sorted(file.name for file in (tmp_path / "recipe.tune").iterdir())[0] == "best.yml"


def test_without_optuna_the_extra_is_named(suite: Path) -> None:
    code = (
        "import sys\nsys.modules['optuna'] = None\nfrom magmerge.cli import main\n"
        f"sys.argv = ['magmerge', 'tune', {str(suite.parent / 'recipe.yml')!r}, '--suite', "
        f"{str(suite)!r}, '--json']\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert json.loads(run.stdout)["error"]["remedy"] == "pip install 'magmerge[tune]'"
