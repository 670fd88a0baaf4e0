"""The recipe beside every result makes the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine
from tests.golden.cases import DTYPES, MODULES, models

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
Verb = Callable[[Path, Path], object]


def stored(folder: Path) -> tuple[str, dict[str, str]]:
    """A base and two experts as folders."""
    base, experts = models(DTYPES["float32"], 2)
    paths = {}
    for name, state in {"base": base, **experts}.items():
        place = folder / name
        place.mkdir()
        save_file(state, place / "model.safetensors")
        (place / "config.json").write_text('{"model_type": "tiny"}')
        paths[name] = str(place)
    return paths.pop("base"), paths


def a_merge(folder: Path, out: Path) -> object:
    base, experts = stored(folder)
    return magmerge.merge(base=base, experts=experts, method="dare_ties", seed=5, calibrate="wsc",
                          params={"lambda": [{"filter": "*mlp*", "value": 0.5}, {"value": 1.0}]},
                          skip="*.1.*", ignore="lm_head.*", dtype="bfloat16", shard_size="20kB",
                          out=out)  # fmt: skip


def a_calibration(folder: Path, out: Path) -> object:
    base, experts = stored(folder)
    merged = folder / "merged"
    magmerge.merge(base=base, experts=experts, method="average", out=merged)
    return magmerge.calibrate(merged, base=base, experts=experts, gate="off", out=out)


def an_extraction(folder: Path, out: Path) -> object:
    base, experts = stored(folder)
    return magmerge.extract(base=base, model=experts["e0"], rank="auto", energy=0.9,
                            targets=["*attn*", "lm_head.*"], out=out)  # fmt: skip


def adapters_alone(folder: Path, out: Path) -> object:
    paths = [write_adapter(folder / f"a{k}.safetensors", MODULES, seed=k) for k in range(2)]
    return magmerge.merge(experts=paths, method="ties", rank=2, calibrate="wsc", naming="peft",
                          out=out)  # fmt: skip


def a_merge_as_an_adapter(folder: Path, out: Path) -> object:
    base, experts = stored(folder)
    return magmerge.merge(base=base, experts=experts, method="average", rank=4, out=out)


def a_conversion(folder: Path, out: Path) -> object:
    base, _ = stored(folder)
    return magmerge.convert(base, out, dtype="float16")


def a_converted_adapter(folder: Path, out: Path) -> object:
    path = write_adapter(folder / "a.safetensors", MODULES)
    return magmerge.convert(path, out, naming="peft")


VERBS = (a_merge, a_calibration, an_extraction, adapters_alone, a_merge_as_an_adapter,
         a_conversion, a_converted_adapter)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_recipe_makes_the_same_bytes(
    verb: Verb, tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    verb(tmp_path, tmp_path / "out")
    outcome = magmerge_cli("merge", tmp_path / "out" / "magmerge.yaml", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    files = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*"))
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*")
    )
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_single_file_has_its_recipe_beside_it(tmp_path: Path) -> None:
    base, experts = stored(tmp_path)
    magmerge.merge(base=base, experts=experts, method="average", out=tmp_path / "one.safetensors")
    magmerge.run(tmp_path / "one.magmerge.yaml", tmp_path / "two.safetensors")
    first, second = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def test_models_and_samples_in_memory_are_given_with_the_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, experts = Net(), {f"e{k}": Net() for k in range(2)}
    data = {name: torch.randn(8, 6) for name in experts}
    magmerge.merge(base=base, experts=experts, method="average", calibrate="fsc", data=data,
                   out=tmp_path / "out.safetensors")  # fmt: skip
    recipe = tmp_path / "out.magmerge.yaml"
    with pytest.raises(ParameterError, match="no file holds"):
        magmerge.run(recipe)
    live = magmerge.Live(data=data)
    with pytest.raises(MagmergeError, match="base of this recipe was a Net in memory"):
        magmerge.run(recipe, live=live)
    again = magmerge.run(
        recipe, tmp_path / "again.safetensors", models={"base": base, **experts}, live=live
    )
    assert again.path is not None
    assert again.path.read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    record = json.loads((tmp_path / "out.magmerge.json").read_text())
    assert all(model["content"].startswith("blake3-tensors:") for model in record["inputs"])
    assert len({model["content"] for model in record["inputs"]}) == 3


def test_a_recipe_may_not_run_code_unasked(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    base, experts = stored(tmp_path)
    recipe = tmp_path / "evil.yaml"
    own = "".join(f"  {name}: {path}\n" for name, path in experts.items())
    recipe.write_text(
        f"base: {base}\nexperts:\n{own}method: average\ncalibrate: fsc\n"
        "samples: {data: x.jsonl, build: 'os:getcwd'}\n"
    )
    outcome = magmerge_cli("merge", recipe, tmp_path / "out")
    assert outcome.code == 1
    assert "names code that builds the model: os:getcwd" in outcome.message
    assert "--allow-code" in outcome.message
    recipe.write_text("!!python/object/apply:os.system ['touch /tmp/owned']")
    outcome = magmerge_cli("merge", recipe, tmp_path / "out")
    assert outcome.code == 1
    assert "not YAML" in outcome.message


def test_documents_are_named_and_read(tmp_path: Path, magmerge_cli: CommandLine) -> None:
    base, experts = stored(tmp_path)
    first = experts["e0"]
    file = tmp_path / "r.yaml"
    for text, problem in (
        (f"base: {base}\nexperts: [{first}]\nmethod: average\n---\nexperts: [x]", "has no name"),
        (f"name: a\nbase: {base}\nexperts: [{first}]\n---\nname: b\nbase: {base}", "no document"),
        (
            f"name: a\nbase: {base}\nexperts: [{first}]\n---\nname: a\nexperts: [a]\n"
            f"---\nbase: {base}\nexperts: [a]",
            "two documents",
        ),
        ("[1, 2]", "no mapping from keys to values"),
        ("", "holds no recipe"),
    ):
        file.write_text(text)
        outcome = magmerge_cli("merge", file, tmp_path / "out")
        assert outcome.code == 1, text
        assert problem in outcome.message, outcome.message
        assert not (tmp_path / "out").exists()


def test_no_document_writes_over_what_another_one_reads(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    base, experts = stored(tmp_path)
    before = (Path(base) / "model.safetensors").read_bytes()
    file = tmp_path / "r.yaml"
    file.write_text(
        f"name: a\nbase: {base}\nexperts: [{experts['e0']}]\nmethod: average\n"
        f"---\nbase: {experts['e0']}\nexperts: [a]\nmethod: average\n"
    )
    outcome = magmerge_cli("merge", file, base, "--yes")
    assert outcome.code == 1, outcome.message
    assert (Path(base) / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "e0", "e1", "r.yaml"]


def test_a_shelf_that_is_the_users_own_is_left_alone(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    base, experts = stored(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text(
        f"name: a\nbase: {base}\nexperts: [{experts['e0']}]\nmethod: average\n"
        f"---\nbase: {base}\nexperts: [a]\nmethod: average\n"
    )
    shelf = tmp_path / ".out.magmerge-documents"
    shelf.mkdir()
    (shelf / "diary").write_text("mine")
    outcome = magmerge_cli("merge", file, tmp_path / "out")
    assert outcome.code == 1, outcome.message
    assert (shelf / "diary").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    # A kill may leave it empty: before its mark is made, and after that is removed.
    (shelf / "diary").unlink()
    outcome = magmerge_cli("merge", file, tmp_path / "out")
    assert outcome.code == 0, outcome.message
    assert not shelf.exists()


def test_a_recipe_of_the_users_own_is_not_replaced(
    tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    base, experts = stored(tmp_path)
    (tmp_path / "out").mkdir()
    own = tmp_path / "out" / "magmerge.yaml"
    own.write_text("mine: true\n")
    outcome = magmerge_cli(
        "merge", "--base", base, "--yes", experts["e0"], experts["e1"], tmp_path / "out"
    )
    assert outcome.code == 1, outcome.message
    assert own.read_text() == "mine: true\n"


def test_merged_with_a_method_is_refused(tmp_path: Path) -> None:
    base, experts = stored(tmp_path)
    recipe = magmerge.Recipe(base=base, experts=experts, merged=experts["e0"], method="ties")
    with pytest.raises(ParameterError):
        magmerge.run(recipe)
