from __future__ import annotations

import pkgutil
import subprocess
import sys
import threading
import time
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

import magmerge
import magmerge.calibrators
import magmerge.methods
from magmerge.core import registry as registries
from magmerge.core.errors import MagmergeError, UnknownNameError
from magmerge.core.registry import Registry, parameters_of
from magmerge.core.traits import Method


def registry() -> Registry[Method]:
    package = ModuleType("nothing_for_test")
    package.BUILTIN = {}  # type: ignore[attr-defined]
    sys.modules["nothing_for_test"] = package
    return Registry("method", "nothing_for_test")


def method(name: str) -> Method:
    return Method(name, lambda deltas: deltas, "", "", ())


PRINT_LOADED = """
import sys
rooms = ("magmerge.methods.", "magmerge.calibrators.")
print(*sorted(name for name in sys.modules if name.startswith(rooms)))
"""


def loaded_by(code: str) -> list[str]:
    """The methods' and calibrators' modules that a fresh interpreter has imported after `code`."""
    command = [sys.executable, "-c", code + PRINT_LOADED]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_a_look_up_imports_only_what_it_names() -> None:
    loaded = loaded_by("import magmerge; magmerge.method('linear')")
    assert loaded == ["magmerge.methods.average", "magmerge.methods.combine"]


def test_a_merge_imports_only_its_own_method_and_calibrator() -> None:
    loaded = loaded_by(
        "import magmerge, torch\n"
        "base, experts = {'w': torch.zeros(2, 2)}, [{'w': torch.eye(2)}]\n"
        "magmerge.merge(base=base, experts=experts, method='average', calibrate='wsc')"
    )
    assert loaded == [
        "magmerge.calibrators.gate",
        "magmerge.calibrators.wsc",
        "magmerge.methods.average",
        "magmerge.methods.combine",
    ]


def test_a_suggestion_imports_nothing() -> None:
    loaded = loaded_by(
        "import magmerge\n"
        "try: magmerge.method('tise')\n"
        "except magmerge.MagmergeError as error: assert 'did you mean ties' in error.remedy"
    )
    assert not loaded


@pytest.mark.parametrize("name", ["ties", "linear"])
def test_a_name_that_is_built_in_is_taken_before_it_is_loaded(name: str) -> None:
    loaded_by(
        "import magmerge\n"
        f"try: magmerge.register_method({name!r}, source='a test')(lambda deltas: deltas)\n"
        "except magmerge.MagmergeError as error: assert 'registered already' in str(error)\n"
        "else: raise AssertionError\n"
        f"assert magmerge.method({name!r}).source != 'a test'"
    )


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (magmerge.methods, registries.methods),
        (magmerge.calibrators, registries.calibrators),
    ],
)
def test_the_table_of_modules_is_what_they_register(package: ModuleType, names: Registry) -> None:
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    registered = {
        name: item.fn.__module__.removeprefix(f"{package.__name__}.")
        for item in names
        if item.fn.__module__.startswith(package.__name__)
        for name in (item.name, *names.aliases(item.name))
    }
    assert registered == package.BUILTIN


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ties"):
        magmerge.method("tise")
    with pytest.raises(UnknownNameError, match="task_arithmetic"):
        magmerge.method("zzz")
    base, experts = {"w": torch.zeros(2, 2)}, [{"w": torch.eye(2)}]
    with pytest.raises(UnknownNameError, match="did you mean dsc"):
        magmerge.plan(base=base, experts=experts, calibrate="dcs")


def test_a_taken_name_is_refused() -> None:
    names = registry()
    names.add(method("a"), aliases=("b",))
    for taken in ("a", "b"):
        with pytest.raises(MagmergeError, match="registered already"):
            names.add(method(taken))


def test_a_method_of_ones_own_merges_like_any_other() -> None:
    @magmerge.register_method("largest_for_test", source="a test")
    def largest(deltas: torch.Tensor, *, power: float = 1.0) -> torch.Tensor:
        """The largest entry."""
        return deltas.amax(0) * power

    try:
        base = {"w": torch.zeros(2, 2)}
        experts = [{"w": torch.ones(2, 2)}, {"w": torch.eye(2) * 3}]
        result = magmerge.merge(
            base=base, experts=experts, method="largest_for_test", params={"power": 2.0}
        )
        assert result.state_dict()["w"].tolist() == [[6, 2], [2, 6]]
    finally:
        del registries.methods._items["largest_for_test"]


def test_a_function_without_defaults_cannot_be_registered() -> None:
    def fn(deltas: torch.Tensor, *, power: float) -> torch.Tensor:
        return deltas

    with pytest.raises(MagmergeError, match="has no default"):
        parameters_of(fn)


class Entry:
    name, value = "third", "party:method"

    def load(self) -> None:
        raise ImportError("no party")


def test_a_broken_entry_point_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    with pytest.raises(MagmergeError, match=r"third = party:method.*no party"):
        registry().get("ties")


def test_entry_points_are_loaded_at_the_first_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry()
    monkeypatch.setattr(Entry, "load", lambda _: names.add(method("third")))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    assert names.get("third").name == "third"


def found_by_threads(names: Registry[Method], name: str) -> list[Method]:
    found: list[Method] = []
    threads = [threading.Thread(target=lambda: found.append(names.get(name))) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_first_look_up_from_several_threads_waits_for_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_for_test").mkdir()
    (tmp_path / "slow_for_test" / "methods.py").write_text(
        "import time, slow_for_test\n"
        "time.sleep(0.1)\n"
        "slow_for_test.names.add(slow_for_test.method('slow'), aliases=('late',))\n"
    )
    (tmp_path / "slow_for_test" / "__init__.py").write_text(
        "BUILTIN = {'slow': 'methods', 'late': 'methods'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = import_module("slow_for_test")
    names: Registry[Method] = Registry("method", "slow_for_test")
    vars(package).update(names=names, method=method)
    assert [item.name for item in found_by_threads(names, "late")] == ["slow"] * 4


def test_the_first_look_up_from_several_threads_waits_for_entry_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = registry()

    def load(_: Entry) -> None:
        time.sleep(0.1)
        names.add(method("third"))

    monkeypatch.setattr(Entry, "load", load)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    assert [item.name for item in found_by_threads(names, "third")] == ["third"] * 4


def test_an_entry_point_does_not_replace_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = registry()
    names.add(method("third"))
    monkeypatch.setattr(Entry, "load", lambda _: names.add(method("third")))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    with pytest.raises(MagmergeError, match="third is registered already"):
        names.get("third")


def test_the_catalog_lists_all_with_defaults_and_source() -> None:
    entries = {entry["name"]: entry for entry in magmerge.catalog()}
    assert {"average", "task_arithmetic", "ties", "dare", "dare_ties", "slerp", "wsc"} <= set(
        entries
    )
    assert entries["task_arithmetic"]["parameters"][0] == {
        "name": "lambda",
        "default": 0.3,
        "meaning": "factor on the merged task vector",
    }
    assert "2306.01708" in entries["ties"]["source"]
