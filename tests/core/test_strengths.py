"""A strength for each expert, in Python, on the command line and in a recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.core.strengths import split_strength

NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("object.safetensors", "style.safetensors")):
        generator = torch.Generator().manual_seed(seed)
        state = {
            f"{NAME}.lora_down.weight": torch.randn(2, 6, generator=generator),
            f"{NAME}.lora_up.weight": torch.randn(8, 2, generator=generator),
            f"{NAME}.alpha": torch.tensor(2.0),
        }
        save_file(state, tmp_path / name)
    return ["object.safetensors", "style.safetensors"]


def product(path: str | Path) -> Tensor:
    state = load_file(path)
    up, down = state[f"{NAME}.lora_up.weight"], state[f"{NAME}.lora_down.weight"]
    return up @ down * (float(state[f"{NAME}.alpha"]) / len(down))


def wanted(files: list[str]) -> Tensor:
    return product(files[0]) + 0.8 * product(files[1])


@pytest.mark.parametrize("named", [False, True])
def test_in_python(files: list[str], named: bool) -> None:
    experts: object = [files[0], Path(f"{files[1]}=0.8")]
    if named:
        experts = {"object": files[0], "style": {"path": files[1], "strength": 0.8}}
    magmerge.merge(experts=experts, rank="exact", out="out.safetensors")  # type: ignore[arg-type]
    assert torch.allclose(product("out.safetensors"), wanted(files), atol=1e-5)


def test_in_a_recipe_and_again_from_its_record(files: list[str]) -> None:
    experts = f"experts: [{files[0]}, '{files[1]}=0.8']"
    Path("r.yaml").write_text(f"{experts}\nmethod: task_arithmetic\noutput: {{rank: exact}}\n")
    magmerge.run("r.yaml", "out.safetensors")
    assert torch.allclose(product("out.safetensors"), wanted(files), atol=1e-5)
    magmerge.run("out.magmerge.yaml", "again.safetensors")
    assert torch.equal(product("again.safetensors"), product("out.safetensors"))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from magmerge.cli import main; main()", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_on_the_command_line(files: list[str]) -> None:
    experts = ["--expert", files[0], "--expert", f"{files[1]}=0.8"]
    done = command("merge", *experts, "--rank", "exact", "out.safetensors")
    assert done.returncode == 0, done.stderr
    assert "strength (lambda" not in done.stderr
    assert torch.allclose(product("out.safetensors"), wanted(files), atol=1e-5)


def test_a_strength_as_an_option_gets_the_line_to_type(files: list[str]) -> None:
    words = ["--expert", files[0], "--expert", files[1], "--rank", "exact", "out.safetensors"]
    refused = command("merge", *words, "--strength", "1", "--strength=0.8")
    assert refused.returncode == 1
    remedy = f"--expert {files[0]}=1 --expert {files[1]}=0.8"
    assert remedy in refused.stderr
    done = command("merge", *remedy.split(), "--rank", "exact", "out.safetensors")
    assert done.returncode == 0, done.stderr
    assert torch.allclose(product("out.safetensors"), wanted(files), atol=1e-5)


def test_a_path_that_exists_is_no_strength(files: list[str]) -> None:
    Path(files[1]).rename("style=0.8")
    Path("style=0.8").rename("style=0.5.safetensors")
    assert split_strength("style=0.5.safetensors") == ("style=0.5.safetensors", None)
    Path("x=2").touch()
    assert split_strength("x=2") == ("x=2", None)
    assert split_strength("x=2=0.5") == ("x=2", 0.5)


@pytest.mark.parametrize("number", ["0,8", "", "nan", "high"])
def test_what_is_no_number_is_an_error_with_the_form(files: list[str], number: str) -> None:
    with pytest.raises(ParameterError, match="is no number") as caught:
        magmerge.merge(experts=[f"{files[0]}={number}"])
    assert "style.safetensors=0.8" in str(caught.value)


def test_strengths_and_weights_are_one_thing(files: list[str]) -> None:
    with pytest.raises(ParameterError, match="which are the same"):
        magmerge.merge(experts=[f"{files[0]}=0.8", files[1]], params={"weights": [1.0, 1.0]})
    with pytest.raises(ParameterError, match="nothing is merged"):
        magmerge.calibrate(files[0], base=files[0], experts=[f"{files[1]}=0.8"])


def test_adapters_that_the_default_weakens_are_told_and_the_remedies_help(
    files: list[str],
) -> None:
    with pytest.warns(MagmergeWarning, match=r"added at 0\.3 of its strength.*lambda=1"):
        magmerge.merge(experts=files)
    found = magmerge.merge(experts=files, params={"lambda": 1.0}, rank="exact")
    again = magmerge.merge(experts=[f"{path}=1" for path in files], rank="exact")
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])


@given(st.text(max_size=30))
def test_any_text_is_a_path_or_a_path_with_a_number(text: str) -> None:
    if "\0" in text:
        return
    path, strength = split_strength(text)
    assert path == text if strength is None else text.startswith(f"{path}=")
