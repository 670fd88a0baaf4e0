"""magmerge merge, plan and convert on adapters alone, as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import magmerge
from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from tests.checkpoints.adapters.standins import full
from tests.conftest import CommandLine
from tests.engine.adapters.test_conducting import both


@pytest.fixture
def cli(magmerge_cli: CommandLine) -> CommandLine:
    return magmerge_cli


@pytest.fixture
def experts(tmp_path: Path) -> list[object]:
    return [option for file in both(tmp_path) for option in ("--expert", file)]


def test_merge_says_the_rank_and_what_was_cut_off(
    cli, experts: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    found = cli("merge", *experts, "--method", "average", "--calibrate", "wsc", "--rank", 1, out)
    assert found.code == 0, found.err
    assert "average + wsc of 2 experts" in found.out
    assert "3 modules merged, 3 calibrated" in found.out
    assert "rank 1, alpha = rank, float32" in found.out
    assert "truncation cut off" in found.out
    assert f"wrote {out}" in found.out.replace("\n", "")
    wanted = magmerge.merge(experts=experts[1::2], method="average", calibrate="wsc", rank=1)
    assert set(wanted.state_dict()) == set(magmerge.open_checkpoint(out).specs)


def test_verbose_has_a_row_for_each_module(cli, experts: list[object], tmp_path: Path) -> None:
    found = cli("merge", *experts, "--rank", "exact", "-v", tmp_path / "out.safetensors")
    assert found.code == 0, found.err
    for word in ("unet.mid_block.attentions.0.proj_in", "12x16", "|merge|", "lost"):
        assert word in found.out
    assert "nothing was cut off" in found.out


def test_json_has_the_modules(cli, experts: list[object], tmp_path: Path) -> None:
    found = cli("merge", *experts, "--method", "average", "--json", tmp_path / "out.safetensors")
    assert found.code == 0, found.err
    (first, *_) = found.json["modules"]
    assert set(first) == {"name", "shape", "rank", "error", "norms", "merged", "written"}
    output = found.json["recipe"]["output"]
    assert output["kind"] == "adapter"
    assert (output["rank"], output["energy"], output["naming"]) == (None, None, None)


def test_plan_counts_modules(cli, experts: list[object], tmp_path: Path) -> None:
    found = cli("plan", *experts, "--method", "ties", tmp_path / "out.safetensors")
    assert found.code == 0, found.err
    assert "3 modules: merged 3" in found.out
    assert not (tmp_path / "out.safetensors").exists()


def test_another_format_is_written(cli, experts: list[object], tmp_path: Path) -> None:
    out = tmp_path / "folder"
    found = cli("merge", *experts, "--method", "average", "--format", "peft", out)
    assert found.code == 0, found.err
    assert (out / "unet" / "adapter_config.json").exists() or (out / "adapter_config.json").exists()


def test_convert_keeps_every_task_vector(cli, experts: list[object], tmp_path: Path) -> None:
    out = tmp_path / "kohya.safetensors"
    found = cli("convert", experts[1], out, "--format", "kohya")
    assert found.code == 0, found.err
    assert "3 modules, diffusers to kohya" in found.out
    before, after = open_adapter(experts[1]), open_adapter(out)
    assert after.naming == "kohya"
    pairs = zip(sorted(before.modules), sorted(after.modules), strict=True)
    for one, other in pairs:
        assert before.modules[one].shape == after.modules[other].shape
    first = sorted(float(full(before.read(one)).norm()) for one in before.modules)
    second = sorted(float(full(after.read(one)).norm()) for one in after.modules)
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rank", "zero"), "the rank is 'zero'"),
        (("--energy", "0.9"), "energy speaks of rank auto"),
        (("--format", "peff"), "did you mean peft"),
        (("--method", "ties", "--rank", "exact"), "does not keep to the ranks"),
    ],
)
def test_mistakes_end_with_a_remedy(
    cli, experts: list[object], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    found = cli("merge", *experts, *options, tmp_path / "out.safetensors")
    assert found.code == 1
    assert words in found.err
    assert "remedy" in found.err
    assert not (tmp_path / "out.safetensors").exists()
    failed = cli("merge", *experts, *options, "--json", tmp_path / "out.safetensors")
    assert failed.code == 1
    assert json.loads(failed.out or failed.err)["error"]


def test_convert_lists_what_has_no_name_there(cli, tmp_path: Path) -> None:
    from tests.engine.adapters.test_conducting import peft_folder

    found = cli("convert", peft_folder(tmp_path / "a", 0), tmp_path / "k.safetensors",
                "--format", "kohya")  # fmt: skip
    assert found.code == 1
    assert "bert.layer.0.query" in found.err
    assert "bert.layer.1.query" in found.err
