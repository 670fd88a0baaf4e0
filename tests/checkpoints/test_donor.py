from __future__ import annotations

import json
from pathlib import Path

import pytest

import magmerge
from magmerge.core.errors import CheckpointError, OutputError


def run(folders: list[Path], out: Path, **more: object) -> Path:
    return magmerge.merge(
        base=folders[0], experts=folders[1:], method="average", out=out, **more
    ).path


def test_config_and_tokenizer_come_from_the_base(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / "generation_config.json").write_text('{"eos": 1}')
    for name in ("modeling_evil.py", ".hidden.json", "optimizer.pt", "magmerge.json"):
        (folders[0] / name).write_text("no")
    out = run(folders, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "tokenizer.json", "generation_config.json", "magmerge.json",
        "magmerge.yaml", "model.safetensors",
    }  # fmt: skip
    assert json.loads((out / "magmerge.json").read_text())["magmerge"]


def test_a_stated_donor_is_taken_instead(folders: list[Path], tmp_path: Path) -> None:
    (folders[2] / "tokenizer.json").write_text('{"mine": 1}')
    out = run(folders, tmp_path / "out", donor=folders[2])
    assert json.loads((out / "tokenizer.json").read_text()) == {"mine": 1}
    with pytest.raises(OutputError, match="is no folder"):
        run(folders, tmp_path / "other", donor=tmp_path / "nowhere")


def test_the_config_says_the_outputs_dtype(folders: list[Path], tmp_path: Path) -> None:
    out = run(folders, tmp_path / "out", dtype="bf16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_folders_of_a_sentence_encoder_are_copied_if_they_lie_inside(
    folders: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    (folders[0] / "1_Pooling").mkdir()
    (folders[0] / "1_Pooling" / "config.json").write_text("{}")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "../secret"}, {"path": ".."}]
    (folders[0] / "modules.json").write_text(json.dumps(modules))
    out = run(folders, tmp_path / "out")
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["1_Pooling"]


def test_a_broken_config_is_one_clear_message(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        run(folders, tmp_path / "out")
