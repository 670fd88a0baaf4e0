"""magmerge reproduce: its table, its JSON, and its messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples.tiny import write_tiny

from magmerge.cli import output
from tests.conftest import call


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    found = call(capsys, "reproduce", *arguments)
    return found.code, found.out, found.err


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """The log's console is made anew for each test's stderr."""
    output.log.cache_clear()
    yield
    output.log.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::magmerge.MagmergeWarning")
def test_a_small_run_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    file = write_tiny("bert", tmp_path / "tiny", ["cola", "ag_news"])
    options = ["--inputs", tmp_path / "tiny" / "inputs", "--data", tmp_path / "tiny" / "data"]
    options += ["--task", "cola", "--task", "ag_news", "--methods", "average,ties"]
    options += ["--spaces", "none,wsc", "--set", "ties.density=0.5", "--alpha", 2]
    code, shown, log = run(capsys, file, out, *options)
    assert code == 0, log
    assert "4 models to make, 192 test rows each" in log
    lines = shown.splitlines()
    heading = next(line for line in lines if line.startswith("model"))
    assert heading.split() == ["model", "ag_news", "cola", "cola-accuracy", "mean"]
    rows = [line.split()[0] for line in lines[lines.index(heading) + 1 :][:6]]
    assert rows == ["zero-shot", "experts", "average", "+wsc", "ties", "+wsc"]
    assert "its figures say nothing about the methods" in shown
    found = json.loads(run(capsys, file, out, *options, "--json")[1])
    written = json.loads((out / "results.json").read_text())
    for row in found["rows"]:
        cells = written["cells"][row["model"]]
        assert {t: one["mean"] for t, one in row["scores"].items()} == {
            task: cell["score"] for task, cell in cells.items()
        }
    ties = re.search(r"^ties +([\d.]+)", shown, re.MULTILINE)
    assert ties is not None
    assert float(ties[1]) == round(100 * written["cells"]["ties"]["ag_news"]["score"], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip-b23"], "did you mean clip-b32"),
        (["bert", "--methods", "tise"], "did you mean ties"),
        (["bert", "--spaces", "wcs"], "did you mean wsc"),
        (["bert", "--set", "density=0.3"], "ties.density=0.3"),
        (["bert", "--samples", "0"], "samples is 0"),
        (["bert", "--inputs", "nowhere"], "no such folder"),
        (["llama", "--spaces", "global"], "controls are tensors in memory"),
    ],
)
def test_mistakes_get_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, log = run(capsys, *arguments)
    assert code == 1
    assert message in log
    assert not list(tmp_path.iterdir())
