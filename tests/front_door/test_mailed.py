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
from magmerge.core.errors import CheckpointError
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine
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


@pytest.fixture
def decoys(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run from, around which other models lie under the names of the result's."""
    other, experts = models(DTYPES["float32"], 3)
    around = place.with_name("around") / "here"
    for root in (around.parent, around):
        for name, state in {"base": experts["e2"], "e0": other, "e1": experts["e2"]}.items():
            (root / name).mkdir(parents=True)
            save_file(state, root / name / "model.safetensors")
            (root / name / "config.json").write_text('{"model_type": "tiny"}')
    monkeypatch.chdir(around)
    return around


@pytest.mark.parametrize("ending", ["out", "out.safetensors"])
@pytest.mark.parametrize("apart", [".", "results"])
@pytest.mark.parametrize("folded", [False, True], ids=["alone", "with an adapter"])
def test_what_was_left_behind_is_never_looked_for_elsewhere(
    ending: str, apart: str, folded: bool, place: Path, decoys: Path
) -> None:
    out = place / apart / ending
    given = three(place)
    if folded:
        fit, on = place / "fit", {"base": place / "base", "model": place / "e0"}
        magmerge.extract(**on, rank=2, out=fit)
        shutil.copytree(fit, decoys / "fit")
        given["experts"] = {"e0": f"{place / 'base'}+{fit}"}
    magmerge.merge(**given, out=out)
    moved = place.with_name("elsewhere") / "deep"
    moved.mkdir(parents=True)
    own = [out] if ending == "out" else out.parent.glob("out.*")
    for file in own:
        shutil.move(file, moved / file.name)
    recipe = moved / ("out/magmerge.yaml" if ending == "out" else "out.magmerge.yaml")
    with pytest.raises(CheckpointError, match="no such file or folder") as raised:
        magmerge.run(recipe)
    assert str(recipe) in str(raised.value)
    assert "base" in str(raised.value.problem)
    assert "lay to each other" in str(raised.value.remedy)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        magmerge.plan_recipe(recipe)
    # It is sound of itself; nothing of its inputs can be proven.
    alone = magmerge.verify(moved / ending)
    assert alone.sound, [check for check in alone.checks if check.faults]
    undone = {check.name for check in alone.checks if not check.done}
    assert undone == {"inputs", "computed again"}
    faults = [f for c in magmerge.verify(moved / ending, against=recipe).checks for f in c.faults]
    assert faults
    assert all("not proven" in fault.text for fault in faults)


def test_the_remedy_for_a_moved_result_is_true(
    place: Path, decoys: Path, magmerge_cli: CommandLine
) -> None:
    given = three(place)
    magmerge.merge(**given, out=place / "out")
    moved = place.with_name("elsewhere") / "deep" / "moved"
    shutil.copytree(place / "out", moved)
    told = magmerge_cli("merge", moved, "again")
    assert told.code == 1
    assert "../base" in told.message
    assert not (decoys / "again").exists()
    recipe = moved / "magmerge.yaml"
    recipe.write_text(recipe.read_text().replace("../", f"{place}/"))
    told = magmerge_cli("merge", moved, "again")
    assert told.code == 0, told.err
    first, second = (load_file(f / "model.safetensors") for f in (place / "out", decoys / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_models_in_memory_stand_for_what_was_left_behind(place: Path) -> None:
    magmerge.merge(**three(place), out=place / "out")
    moved = place.with_name("elsewhere") / "deep" / "moved"
    shutil.copytree(place / "out", moved)
    held = {name: load_file(place / name / "model.safetensors") for name in ("base", "e0", "e1")}
    assert magmerge.run(moved / "magmerge.yaml", models=held).state_dict()


@pytest.mark.parametrize("ending", ["o", "o.safetensors"])
def test_links_on_the_way_are_followed(
    ending: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "real" / "deep").mkdir(parents=True)
    (place / "link").symlink_to("real/deep")
    base, experts = models(DTYPES["float32"], 4)
    for name, state in {"base": experts["e2"], "x": base}.items():
        (place / "real" / name).mkdir()
        save_file(state, place / "real" / name / "model.safetensors")
    (place / "blobs").mkdir()
    (place / "e0" / "model.safetensors").rename(place / "blobs" / "a1b2")
    (place / "e0" / "model.safetensors").symlink_to("../blobs/a1b2")
    experts_of = {"e0": "e0/model.safetensors", "e1": "e1"}
    made = magmerge.merge(base="link/../x", experts=experts_of, method="ties", out=f"link/{ending}")
    told = made.state_dict()
    monkeypatch.chdir("/")
    for folder in ("link", "real/deep"):
        out = place / folder / ending
        recipe = out / "magmerge.yaml" if ending == "o" else out.with_name("o.magmerge.yaml")
        again = magmerge.run(recipe).state_dict()
        assert all(torch.equal(own, again[name]) for name, own in told.items())
        found = magmerge.verify(out, against=recipe, every=True)
        assert found.sound, [check for check in found.checks if check.faults]


@pytest.mark.parametrize("name", ["recipe.yaml", "magmerge.yaml", "my.magmerge.yaml"])
def test_a_recipe_without_a_record_calls_from_where_the_program_runs(
    name: str, place: Path, decoys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    recipe = decoys / name
    recipe.write_text("base: base\nexperts: {e0: ./e0, e1: ../at-home/e1}\nmethod: ties\n")
    mine, made = magmerge.run(recipe).state_dict(), magmerge.merge(**three(place)).state_dict()
    assert all(torch.equal(own, mine[name]) for name, own in made.items())


@pytest.mark.parametrize("ending", ["out", "out.safetensors"])
@pytest.mark.parametrize("at", ["beside the result", "where the program runs"])
@pytest.mark.parametrize("all_read", [True, False])
def test_a_document_is_no_folder_of_its_name(
    ending: str, at: str, all_read: bool, place: Path, decoys: Path
) -> None:
    recipe = place / "documents.yaml"
    first, last = (
        "".join(f"  {name}: {place / name}\n" for name in names)
        for names in ((("e0", "e1"), ("e0", "e1")) if all_read else (("e0",), ("e1",)))
    )
    recipe.write_text(
        f"name: s1\nbase: {place / 'base'}\nexperts:\n{first}method: average\n---\n"
        f"base: {place / 'base'}\nexperts:\n  s1: s1\n{last}method: ties\n"
    )
    out = place / ending
    magmerge.run(recipe, out)
    shutil.copytree(place / "e1", (place if at == "beside the result" else decoys) / "s1")
    for against in (recipe, out, None):
        found = magmerge.verify(out, against=against)
        assert found.sound, [check for check in found.checks if check.faults]
