"""A result can be mailed: no file of it tells where it was made, and all is found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints import open_checkpoint
from tests.checkpoints.adapters.files import write_adapter
from tests.golden.cases import DTYPES, MODULES, models

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that no file of a result may name, with models and adapters in it."""
    place = tmp_path / "at-home"
    base, experts = models(DTYPES["float32"], 2)
    for name, state in {"base": base, **experts}.items():
        (place / name).mkdir(parents=True)
        save_file(state, place / name / "model.safetensors")
        (place / name / "config.json").write_text('{"model_type": "tiny"}')
    for k in range(2):
        write_adapter(place / f"a{k}.safetensors", MODULES, seed=k)
    return place


def three(place: Path) -> dict[str, object]:
    experts = {name: str(place / name) for name in ("e0", "e1")}
    return {"base": str(place / "base"), "experts": experts, "method": "ties"}


def told(out: Path, word: str) -> list[str]:
    """The files of a result that hold a word."""
    files = [file for file in out.parent.rglob("*") if file.is_file()]
    return [file.name for file in files if word.encode() in file.read_bytes()]


CASES = {
    "a folder": ({"calibrate": "wsc"}, "out"),
    "a file": ({"calibrate": "wsc"}, "out.safetensors"),
    "a donor": ({"donor": "base"}, "out"),
    "an adapter on a base": ({"rank": 2}, "out"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("typed", ["absolute", "relative"])
def test_no_file_tells_where_it_was_made(
    name: str, typed: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, ending = CASES[name]
    monkeypatch.chdir(place)
    root = place if typed == "absolute" else Path()
    more = {**more, **({"donor": str(root / "base")} if "donor" in more else {})}
    out = root / "results" / ending
    magmerge.merge(**three(root), **more, out=out)
    # PEFT loads the base from where an adapter's configuration says.
    assert set(told(out, str(place))) <= {"adapter_config.json"}
    record = next((place / "results").rglob("*magmerge.json"))
    up = "../.." if record.parent.name == "out" else ".."
    content = json.loads(record.read_text())
    assert content["recipe"]["base"] == f"{up}/base"
    assert content["inputs"][0]["source"] == f"{up}/base"
    found = magmerge.verify(out, against=record.with_name(record.name.replace(".json", ".yaml")))
    assert found.sound, [check for check in found.checks if check.faults]
    assert magmerge.verify(out).sound
    assert magmerge.run(record.with_name(record.name.replace(".json", ".yaml"))).state_dict()


def test_of_adapters_and_documents_too(place: Path) -> None:
    out = place / "adapters" / "out.safetensors"
    adapters = {name: str(place / f"{name}.safetensors") for name in ("a0", "a1")}
    magmerge.merge(experts=adapters, method="average", rank=2, out=out)
    assert told(out, str(place)) == []
    assert magmerge.verify(out, against=out, every=True).sound
    recipe = place / "documents.yaml"
    own = "".join(f"  {name}: {place / name}\n" for name in ("e0", "e1"))
    recipe.write_text(
        f"name: first\nbase: {place / 'base'}\nexperts:\n{own}method: average\n---\n"
        f"base: {place / 'base'}\nexperts:\n  first: first\n  e0: {place / 'e0'}\nmethod: ties\n"
    )
    out = place / "piped" / "out"
    magmerge.run(recipe, out)
    assert told(out, str(place)) == []
    content = json.loads((out / "magmerge.json").read_text())
    assert {entry["source"] for entry in content["inputs"]} == {
        "../../base", "../../e0", "../../e1", "first",
    }  # fmt: skip
    found = magmerge.verify(out, against=out, every=True)
    assert found.sound, [check for check in found.checks if check.faults]


def test_what_is_moved_together_is_found_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    magmerge.merge(**three(place), out=place / "out")
    moved = place.with_name("elsewhere")
    shutil.move(place, moved)
    monkeypatch.chdir("/")
    found = magmerge.verify(moved / "out", against=moved / "out", every=True)
    assert found.sound, [check for check in found.checks if check.faults]
    magmerge.run(moved / "out" / "magmerge.yaml", moved / "again")
    first, second = (load_file(moved / n / "model.safetensors") for n in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_records_of_before_are_read(place: Path) -> None:
    """Their paths are absolute, and their digest is of these."""
    out = place / "out"
    magmerge.merge(**three(place), out=out)
    for name in ("magmerge.yaml", "magmerge.json"):
        text = (out / name).read_text().replace("../", f"{place}/")
        (out / name).write_text(text)
    record = json.loads((out / "magmerge.json").read_text())
    digest = magmerge.read_recipes(out)[0].digest
    record["recipe_digest"] = digest
    del record["texts"]
    (out / "magmerge.json").write_text(json.dumps(record))
    found = magmerge.verify(out, against=out, every=True)
    assert found.sound, [check for check in found.checks if check.faults]
    assert open_checkpoint(out).specs
