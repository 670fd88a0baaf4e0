"""The command line as its users meet it: a process with an exit code and two streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from tests.conftest import State


def models(folders: list[Path]) -> list[object]:
    options: list[object] = ["--base", folders[0]]
    for folder in folders[1:]:
        options += ["--expert", folder]
    return options


def test_merge_does_what_the_function_does(
    magmerge_cli, folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = magmerge_cli(
        "merge", *models(folders), "--method", "ties", "--set", "density=0.5",
        "--set", "lambda=0.8", "--calibrate", "wsc", "--set", "wsc.target=sphere", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert str(out) in found.out
    assert "merging: 6/6" in found.err
    expected = magmerge.merge(
        base=folders[0],
        experts=folders[1:],
        method="ties",
        params={"density": 0.5, "lambda": 0.8},
        calibrate={"method": "wsc", "params": {"target": "sphere"}},
    ).state_dict()
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_numbers_may_be_written_with_an_exponent(
    magmerge_cli, folders: list[Path], tmp_path: Path
) -> None:
    found = magmerge_cli(
        "merge", *models(folders), "--set", "lambda=1e-3", "--json", tmp_path / "o"
    )
    assert found.json["recipe"]["params"]["lambda"] == 0.001


def test_merge_tells_a_program_everything(
    magmerge_cli, folders: list[Path], tmp_path: Path
) -> None:
    found = magmerge_cli("merge", *models(folders), "--calibrate", "wsc", "--json", tmp_path / "o")
    assert found.json["path"] == str(tmp_path / "o")
    assert len(found.json["layers"]) == 6
    assert found.json["recipe"]["method"] == "task_arithmetic"


def test_verbose_prints_a_row_for_each_calibrated_layer(
    magmerge_cli, folders: list[Path], tmp_path: Path
) -> None:
    found = magmerge_cli("merge", *models(folders), "--calibrate", "wsc", "-v", tmp_path / "o")
    assert found.out.count("layers.0.") == 4
    assert "no gate" in found.out


def test_calibrate_repairs_a_merge_of_any_tool(
    magmerge_cli, folders: list[Path], tmp_path: Path, base: State, experts: list[State]
) -> None:
    foreign = {n: sum(e[n] for e in experts) / 3 for n in base}
    save_file(foreign, tmp_path / "foreign.safetensors")
    out = tmp_path / "out.safetensors"
    found = magmerge_cli("calibrate", tmp_path / "foreign.safetensors", out, *models(folders))
    assert found.code == 0, found.err
    name = "layers.0.mlp.weight"
    deltas = torch.stack([e[name] - base[name] for e in experts])
    xi = magmerge.calibrator("wsc").fn(deltas, foreign[name] - base[name]).clamp(min=1)
    expected = base[name] + xi.unsqueeze(1) * (foreign[name] - base[name])
    assert torch.allclose(load_file(out)[name], expected, atol=1e-6)


def test_plan_prints_every_tensor_and_writes_nothing(
    magmerge_cli, folders: list[Path], tmp_path: Path, base: State
) -> None:
    found = magmerge_cli("plan", *models(folders), "--calibrate", "wsc", tmp_path / "out")
    assert found.code == 0
    assert all(name in found.out for name in base)
    assert "peak memory" in found.out
    assert not (tmp_path / "out").exists()
    document = magmerge_cli("plan", *models(folders), "--json").json
    assert [step["spec"]["name"] for step in document["steps"]] == list(
        magmerge.open_checkpoint(folders[0]).specs
    )


def test_inspect_and_diff(magmerge_cli, folders: list[Path], base: State) -> None:
    found = magmerge_cli("inspect", folders[0])
    assert all(name in found.out for name in base)
    assert len(magmerge_cli("inspect", folders[0], "--json").json["tensors"]) == len(base)
    found = magmerge_cli("diff", folders[0], folders[1])
    assert "6 tensors, 0 of them equal" in found.out
    same = magmerge_cli("diff", folders[0], folders[0], "--json").json
    assert all(one["difference"] == 0 for one in same)


def test_methods_lists_every_registered_name(magmerge_cli) -> None:
    found = magmerge_cli("methods")
    for entry in magmerge_cli("methods", "--json").json:
        assert entry["name"] in found.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--method", "tise"], "did you mean ties"),
        (["--set", "lamda=1"], "did you mean lambda"),
        (["--set", "lambda"], "no value"),
        (["--set", "lambda=[1"], "cannot be read"),
        (["--set", "lambda=2024-99-99"], "cannot be read"),
        (["--set", "lambda=" + "[" * 5000], "cannot be read"),
        (["--set", "wsc.target=sphere"], "neither the method nor a calibrator"),
        (["--set", "lambda=1", "--set", "lambda=2"], "given twice"),
        (["--method", "ties", "--set", "density=2"], "less than or equal to 1"),
        (["--method", "slerp"], "exactly 2 experts"),
        (["--calibrate", "wcs"], "did you mean wsc"),
        (["--dtype", "float31"], "float32"),
        (["--shard-size", "5 potatoes"], "is no size"),
        (["--threads", "0"], "0 threads"),
        (["--gate", "ajar"], "on or off"),
        (["--sensitive", "/nowhere"], "cannot be read"),
        (["--expert", "/nowhere"], "no such file or folder"),
        (["--donor", "/nowhere"], "is no folder"),
    ],
)
def test_mistakes_are_one_clear_message_with_exit_code_1(
    magmerge_cli, folders: list[Path], tmp_path: Path, change: list[str], message: str
) -> None:
    for verb in ("merge", "plan"):
        found = magmerge_cli(verb, *models(folders), *change, tmp_path / "out")
        assert found.code == 1
        assert message in found.err
        assert "remedy:" in found.err
        assert not (tmp_path / "out").exists()


def test_json_errors_are_json(magmerge_cli, folders: list[Path], tmp_path: Path) -> None:
    found = magmerge_cli("merge", *models(folders), "--method", "tise", "--json", tmp_path / "o")
    assert found.code == 1
    assert found.json["error"]["kind"] == "UnknownNameError"
    assert "ties" in found.json["error"]["remedy"]


def test_wrong_usage_is_exit_code_2(magmerge_cli, folders: list[Path]) -> None:
    assert magmerge_cli("merge", *models(folders)).code == 2
    assert magmerge_cli("merge", "--colour", "red").code == 2
    assert magmerge_cli("marge").code == 2


def test_names_from_files_are_shown_as_plain_text(magmerge_cli, tmp_path: Path) -> None:
    save_file({"[red]a\x1b[2J[/red]": torch.ones(1)}, tmp_path / "m.safetensors")
    out = magmerge_cli("inspect", tmp_path / "m.safetensors").out
    assert "\x1b" not in out
    assert "[red]a" in out


def test_an_existing_output_needs_yes(magmerge_cli, folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert magmerge_cli("merge", *models(folders), out).code == 0
    assert "--yes" in magmerge_cli("merge", *models(folders), out).err
    assert magmerge_cli("merge", *models(folders), out, "--yes").code == 0


def test_warnings_go_to_stderr(
    magmerge_cli, folders: list[Path], experts: list[State], tmp_path: Path
) -> None:
    half = {name: tensor.half() for name, tensor in experts[0].items()}
    save_file(half, folders[1] / "model.safetensors")
    found = magmerge_cli("merge", *models(folders), tmp_path / "out", "--json")
    assert "warning:" in found.err
    assert found.json["warnings"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["methods"], 0, "task_arithmetic"),
        (["merge", "--base", "nope", "--expert", "x", "out"], 1, "nope"),
        (["no-such-verb"], 2, "no-such-verb"),
    ],
)
def test_the_installed_program_prints_all_and_gives_its_exit_code(
    arguments: list[str], code: int, told: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from magmerge.cli import program; program()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code
    assert told in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
