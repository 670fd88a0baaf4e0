"""`verify --against RECIPE`: that a model is what its recipe says, or why that is not proven."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import ParameterError
from magmerge.pipeline.verify import Verification
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine
from tests.front_door.test_one_path import written
from tests.golden.cases import DTYPES, MODULES, models

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


def faults(found: Verification) -> dict[str, str]:
    return {check.name: check.faults[0].text for check in found.checks if check.faults}


def seen(found: Verification, name: str) -> str:
    return next(check.seen for check in found.checks if check.name == name)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe with its parameters left out, and its result."""
    base, experts = models(DTYPES["float32"], 3)
    paths = written(tmp_path, {"base": base, **experts})
    own = "".join(f"  {name}: {paths[name]}\n" for name in experts)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {paths['base']}\nexperts:\n{own}method: ties\n")
    magmerge.run(recipe, tmp_path / "out")
    return recipe, tmp_path / "out"


def change(file: Path, name: str) -> None:
    state = load_file(file)
    state[name].view(-1)[0] += 1
    save_file(state, file, metadata={"format": "pt"})


def test_a_result_is_proven_by_a_sample_or_by_all(made: tuple[Path, Path]) -> None:
    recipe, out = made
    found = magmerge.verify(out, against=recipe)
    assert found.sound
    assert seen(found, "computed again") == "8 of 10 tensors, bit for bit"
    found = magmerge.verify(out, against=recipe, every=True)
    assert found.sound
    assert seen(found, "computed again") == "10 tensors, bit for bit"
    assert seen(found, "recipe").endswith("is the recipe that the record tells")


@pytest.mark.parametrize("name", ["layers.0.mlp.bias", "position_ids"])
def test_every_tensor_that_differs_is_told(made: tuple[Path, Path], name: str) -> None:
    recipe, out = made
    change(out / "model.safetensors", name)
    assert name in faults(magmerge.verify(out, against=recipe, every=True))["computed again"]


def test_another_recipe_and_other_tensors_are_told(made: tuple[Path, Path]) -> None:
    recipe, out = made
    other = recipe.with_name("other.yaml")
    other.write_text(recipe.read_text() + "params: {density: 0.5}\n")
    told = faults(magmerge.verify(out, against=other, every=True))
    assert "the record tells the recipe" in told["recipe"]
    assert "gives other values" in told["computed again"]
    state = load_file(out / "model.safetensors")
    save_file({**state, "more": state["lm_head.weight"].clone()}, out / "model.safetensors")
    told = faults(magmerge.verify(out, against=recipe))
    assert told["computed again"] == "the recipe does not give more"


def test_several_documents_are_proven(made: tuple[Path, Path]) -> None:
    recipe, _ = made
    text, documents = recipe.read_text(), recipe.with_name("documents.yaml")
    second = text.replace("experts:\n", "experts:\n  first: first\n", 1)
    documents.write_text(f"name: first\n{text}---\n{second}")
    out = recipe.with_name("twice")
    magmerge.run(documents, out)
    for against in (documents, out / "magmerge.yaml", out):
        found = magmerge.verify(out, against=against, every=True)
        assert found.sound, faults(found)
        assert seen(found, "computed again") == "10 tensors, bit for bit"
        assert seen(found, "recipe").endswith("is the recipe that the record tells")
    # The first document's own parameters are in no digest, but in every tensor.
    documents.write_text(f"name: first\n{text}params: {{density: 0.9}}\n---\n{second}")
    told = faults(magmerge.verify(out, against=documents, every=True))
    assert "gives other values" in told["computed again"]
    documents.write_text(f"name: first\n{text}---\n{text}")
    with pytest.raises(ParameterError, match="no document reads the result"):
        magmerge.verify(out, against=documents)


def test_a_recipe_that_names_code_is_proven_where_the_code_may_be_called(
    tmp_path: Path, magmerge_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_model.py").write_text(
        "from torch import nn\n\n"
        "def build():\n    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))\n"
    )
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (4, 6), "0.bias": (4,), "1.weight": (3, 4), "1.bias": (3,)}
    paths = []
    for name in ("base", "one", "two"):
        state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(state, paths[-1])
    samples = tmp_path / "rows.safetensors"
    save_file({"inputs": torch.randn(8, 6, generator=generator)}, samples)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out.safetensors"
    recipe.write_text(
        f"base: {paths[0]}\nexperts:\n  one: {paths[1]}\n  two: {paths[2]}\nmethod: average\n"
        f"calibrate: fsc\nsamples:\n  data: {{one: {samples}, two: {samples}}}\n"
        "  build: own_model:build\n"
    )
    magmerge.run(recipe, out, live=magmerge.Live(build=True))
    told = magmerge_cli("verify", out, "--against", recipe)
    assert told.code == 1
    assert "called with --allow-code" in " ".join(told.out.split())
    proven = magmerge_cli("verify", out, "--against", recipe, "--all", "--allow-code", "--json")
    assert proven.code == 0, proven.out
    assert "bit for bit" in proven.out
    alone = magmerge_cli("verify", out, "--allow-code")
    assert "name it: --against" in alone.err


def test_an_expert_that_is_gone_is_a_fault_beside_all_other_checks(
    made: tuple[Path, Path],
) -> None:
    recipe, out = made
    shutil.rmtree(recipe.parent / "e1")
    found = magmerge.verify(out, against=recipe)
    told = faults(found)
    assert "not proven: " in told["recipe"]
    assert "not at hand" in told["computed again"]
    assert {"finite", "checksums", "record"} <= {check.name for check in found.checks if check.done}


def test_adapters_are_proven_too(tmp_path: Path) -> None:
    paths = {
        f"a{k}": str(write_adapter(tmp_path / f"a{k}.safetensors", MODULES, seed=k)) for k in (0, 1)
    }
    out = tmp_path / "out.safetensors"
    magmerge.merge(experts=paths, method="ties", rank=2, out=out)
    recipe = tmp_path / "out.magmerge.yaml"
    found = magmerge.verify(out, against=recipe, every=True)
    assert found.sound, faults(found)
    assert "bit for bit" in seen(found, "computed again")
    change(out, next(iter(load_file(out))))
    assert "computed again" in faults(magmerge.verify(out, against=recipe))
