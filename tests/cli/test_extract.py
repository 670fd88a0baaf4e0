"""magmerge extract as its users meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import magmerge
from tests.checkpoints.adapters.changes import LAYERS, changed, near
from tests.conftest import CommandLine, State


@pytest.fixture
def cli(magmerge_cli: CommandLine) -> CommandLine:
    return magmerge_cli


@pytest.fixture
def pair(save: Callable[[str, State], Path], base: State) -> list[object]:
    folders = [save("base", base), save("model", changed(base))]
    return ["--base", folders[0], "--model", folders[1]]


def test_extract_writes_what_merges_back_to_the_model(
    cli, pair: list[object], base: State, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = cli("extract", *pair, "--rank", "3", out)
    assert found.code == 0, found.err
    assert "3 modules, rank 3, alpha = rank, float32" in found.out
    assert "misses 0.00 %" in found.out
    assert f"wrote {out}" in found.out
    assert "extracting: 6/6" in found.err
    merged = magmerge.merge(base=pair[1], experts=[out], method="average").state_dict()
    assert near(merged, changed(base))


def test_the_table_names_the_modules_that_miss_most(
    cli, save: Callable[[str, State], Path], tmp_path: Path
) -> None:
    base = {f"w.{i}.weight": torch.zeros(8, 8) for i in range(7)}
    model = changed(base, tuple(base), rank=4)
    pair = ["--base", save("base", base), "--model", save("model", model)]
    found = cli("extract", *pair, "--rank", "2", tmp_path / "a")
    assert found.out.count("8x8") == 5
    assert "and 2 more (-v)" in found.out
    whole = cli("extract", *pair, "--rank", "2", "-v", tmp_path / "b")
    rows = [line for line in whole.out.splitlines() if "8x8" in line]
    missed = [float(row.split()[-2]) for row in rows]
    assert len(rows) == 7
    assert missed == sorted(missed, reverse=True)


def test_json_tells_a_program_everything(
    cli, pair: list[object], base: State, tmp_path: Path
) -> None:
    model = changed(base)
    model["layers.0.norm.weight"] += 1
    save_file(model, Path(str(pair[3])) / "model.safetensors")
    out = tmp_path / "out"
    found = cli("extract", *pair, "--rank", "auto", "--energy", "0.9", "--json", out)
    assert found.json["path"] == str(out)
    assert found.json["recipe"]["output"]["energy"] == 0.9
    assert [f"{one['name']}.weight" for one in found.json["modules"]] == [
        name for name in magmerge.open_checkpoint(pair[1]).specs if name in LAYERS
    ]
    assert [one["name"] for one in found.json["lost"]] == ["layers.0.norm.weight"]
    assert 0 < found.json["error"] < 1
    assert "warning: 1 changed tensor not in the adapter" in found.err


def test_the_lost_are_told(cli, pair: list[object], tmp_path: Path) -> None:
    found = cli("extract", *pair, "--target", "*.attn", tmp_path / "out")
    assert "not in the adapter, counted as missed" in found.out
    assert "2 changed tensors (" in found.out
    assert "layers.0.mlp.weight" in found.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--rank", "0"], "the rank is '0'"),
        (["--rank", "-2"], "the rank is '-2'"),
        (["--rank", "many"], "the rank is 'many'"),
        (["--rank", "auto", "--energy", "1.5"], "the energy is 1.5"),
        (["--energy", "0.9"], "--energy has no meaning with --rank 16"),
        (["--format", "koyha"], "did you mean kohya"),
        (["--dtype", "float31"], "float32"),
        (["--target", "nosuch"], "matches no tensor"),
        (["--ignore", "nosuch"], "matches no tensor"),
        (["--model", "/nowhere"], "no such file or folder"),
        (["--memory", "1kB"], "too little"),
        (["--threads", "0"], "0 threads"),
    ],
)
def test_mistakes_are_one_clear_message_with_exit_code_1(
    cli, pair: list[object], tmp_path: Path, change: list[str], message: str
) -> None:
    found = cli("extract", *pair, *change, tmp_path / "out")
    assert found.code == 1
    assert message in found.err
    assert "remedy:" in found.err
    assert not (tmp_path / "out").exists()


def test_an_existing_output_needs_yes(cli, pair: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("extract", *pair, out).code == 0
    assert "--yes" in cli("extract", *pair, out).err
    assert cli("extract", *pair, out, "--yes").code == 0
