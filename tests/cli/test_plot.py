"""magmerge plot as its users meet it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import magmerge
from magmerge.cli import main
from tests.conftest import call
from tests.studies.figures.suites import TASKS, curves, figure_suite, ranking


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return figure_suite(tmp_path_factory.mktemp("figures"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    found = call(capsys, "plot", *arguments)
    return found.code, found.out, found.err


def test_the_suite_is_enough(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.png"
    code, said, err = run(
        capsys, "samples", "--suite", suite, "--seeds", 1, "--samples", "1,2", out
    )
    assert code == 0
    assert "points: 6/6" in err
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == ["merge", "calibration", "1", "2"]
    assert [line[:2] for line in lines[1:5]] == [
        ["task_arithmetic", name] for name in ("none", "wsc", "fsc", "dsc")
    ]
    content = json.loads(out.with_suffix(".json").read_text())
    plain = content["points"][0]
    assert lines[1][2:] == [f"{100 * plain['mean']:.1f}"] * 2
    assert f"wrote {out} in" in said
    assert str(out.with_suffix(".json")) in said


def test_options_reach_the_front_door(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict = {}

    def plot(kind: str, out: Path, **arguments: object) -> None:
        seen.update(arguments, kind=kind, out=out)
        raise magmerge.MagmergeError("seen")

    monkeypatch.setattr(magmerge, "plot", plot)
    sys.argv = [
        "magmerge", "plot", "lambda", "--suite", str(suite), "--method", "ties", "--method", "dare",
        "--set", "ties.density=0.3", "--set", "lambda=0.5", "--set", "wsc.target=sphere",
        "--calibrate", "wsc", "--values", "0.5, 1", "--samples", "4", "--seeds", "2", "--gate",
        "off", "--expert", "a=A", "--expert", "some/b", "--data", "a=x.jsonl", "--split",
        "validation", "--task", "two", "--dtype", "bfloat16", "--threads", "1", "--sensitive", "l",
        "--base", str(tmp_path), "--yes", "out.svg",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        main()
    del seen["progress"]
    assert seen == {
        "kind": "lambda", "out": Path("out.svg"), "suite": suite, "methods": ["ties", "dare"],
        "params": {"ties": {"density": 0.3, "lambda": 0.5}, "dare": {"lambda": 0.5},
                   "wsc": {"target": "sphere"}},
        "calibrate": ["wsc"], "values": [0.5, 1.0], "samples": 4, "seeds": 2, "gate": "off",
        "experts": {"a": "A", "b": "some/b"}, "data": {"a": "x.jsonl"}, "split": "validation",
        "tasks": ["two"], "dtype": "bfloat16", "threads": 1, "sensitive": Path("l"),
        "base": tmp_path, "overwrite": True, "device": "cpu",
        "allow_code": False, "memory": "2GB",
    }  # fmt: skip


def test_layers_of_a_file_and_of_a_suite(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.svg"
    code, said, _ = run(capsys, "sensitivity", "--suite", suite, "--samples", 4, "--mode", "fast",
                        "--alpha", 2, out)  # fmt: skip
    assert code == 0
    assert len(said.splitlines()) == 4
    code, said, _ = run(capsys, "coefficients", "--suite", suite, "--samples", 2, "--verbose",
                        "--sensitive", out.with_suffix(".json"), tmp_path / "c.pdf")  # fmt: skip
    assert code == 0
    assert sum(" yes " in line for line in said.splitlines()) == 2
    code, said, _ = run(capsys, "alpha", "--suite", suite, "--sensitive", out.with_suffix(".json"),
                        "--calibrate", "wsc", "--values", "0,1", tmp_path / "a.svg")  # fmt: skip
    assert code == 0
    assert {one.name for one in tmp_path.iterdir()} == {
        f"{name}.{ending}" for name, own in {"s": "svg", "c": "pdf", "a": "svg"}.items()
        for ending in (own, "json")
    }  # fmt: skip


def test_redraw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = tmp_path / "n.json"
    numbers.write_text(json.dumps(curves()))
    code, said, _ = run(capsys, "redraw", numbers, tmp_path / "f.svg")
    assert code == 0
    assert "fsc" in said
    code, said, _ = run(capsys, "redraw", numbers, tmp_path / "g.svg", "--json")
    assert code == 0
    assert json.loads(said)["points"] == curves()["points"]
    numbers.write_text(json.dumps(ranking()))
    code, said, _ = run(capsys, "redraw", numbers, tmp_path / "h.svg", "-v")
    assert len(said.splitlines()) == 2 + len(ranking()["layers"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samples", "s.gif"], ".svg, .png or .pdf"),
        (["samples", "s.svg", "--samples", "one"], "--samples one: no numbers"),
        (["samples", "s.svg", "--seeds", "0"], "seeds is 0"),
        (["samples", "s.svg", "--expert", "=x"], "write NAME=PATH"),
        (["samples", "s.svg", "--expert", "a=x", "--expert", "a=y"], "two experts are called a"),
        (["samples", "s.svg", "--set", "density"], "no value"),
        (["alpha", "s.svg", "--values", "1000", "--mode", "fast"], "are ranked"),
        (["lambda", "s.svg", "--gate", "of"], "on or off"),
        (["sensitivity", "s.svg", "--alpha", "0"], "alpha is 0"),
        (["redraw", "none.json", "s.svg"], "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_message(
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = [] if arguments[0] == "redraw" else ["--suite", suite]
    code, said, err = run(capsys, *arguments, *more)
    assert code == 1
    assert not said
    assert message in " ".join(err.split())


def test_an_interruption_keeps_the_points(
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from magmerge.studies.figures import points as module

    real, seen = module.point_of, []

    def stopping(*given: object) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(module, "point_of", stopping)
    arguments = ("lambda", "--suite", suite, "--calibrate", "wsc", "--values", "0.5,1",
                 tmp_path / "l.svg")  # fmt: skip
    code, _, err = run(capsys, *arguments)
    assert code == 130
    assert "the same command goes on" in " ".join(err.split())
    assert "nothing was left" not in err
    monkeypatch.setattr(module, "point_of", real)
    code, _, err = run(capsys, *arguments)
    assert code == 0
    content = json.loads((tmp_path / "l.json").read_text())
    assert [one["mean"] for one in content["points"][:2]] == [one.mean for one in seen]
    assert len(content["points"]) == 4
    assert content["settings"]["experts"].keys() == TASKS.keys()
