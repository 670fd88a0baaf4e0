from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.kernels.arguments import is_here


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_magmerge_or_its_command_line_imports_no_torch() -> None:
    found = run("import sys, magmerge, magmerge.cli; print('torch' in sys.modules)")
    assert found == "False\n"


def test_help_and_version_import_no_torch() -> None:
    for option in ("--help", "--version"):
        code = (
            "import sys\nfrom magmerge.cli import main\n"
            f"sys.argv = ['magmerge', '{option}']\n"
            "try: main()\nexcept SystemExit: pass\n"
            "print('torch' in sys.modules)"
        )
        assert run(code).endswith("False\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "--base", "nope", "--expert", "x", "out"],
        ["extract", "--base", "nope", "--model", "x", "out"],
        ["convert", "nope", "out"],
        ["inspect", "nope"],
        ["diff", "nope", "x"],
    ],
)
def test_a_wrong_path_is_told_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom magmerge.cli import main\n"
        f"sys.argv = {['magmerge', *arguments]!r}\n"
        "try: main()\nexcept SystemExit as end: print(end.code)\n"
        "print('torch' in sys.modules)"
    )
    assert run(code).endswith("1\nFalse\n")


def test_a_plan_of_files_is_made_without_torch(folders: list[Path]) -> None:
    base, *experts = map(str, folders)
    code = (
        "import sys, magmerge\n"
        f"magmerge.plan(base={base!r}, experts={experts!r}, method='ties', calibrate=['wsc'])\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False\n"
    words = [word for expert in experts for word in ("--expert", expert)]
    code = (
        "import sys\nfrom magmerge.cli import main\n"
        f"sys.argv = {['magmerge', 'plan', '--base', base, *words, 'out']!r}\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    assert run(code).endswith("False\n")


MERGE = """
import sys, magmerge
from magmerge.engine import steps
class First(Exception): ...
def treated(*_): raise First
steps.treated = treated
try: magmerge.merge({arguments})
except First: pass
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize(
    ("method", "calibrate"),
    [
        ("average", []),
        ("task_arithmetic", ["wsc"]),
        ("ties", []),
        ("dare", []),
        ("dare_ties", ["wsc"]),
        ("breadcrumbs", []),
    ],
)
def test_a_merge_of_files_needs_torch_for_its_functions_alone(
    folders: list[Path],
    tmp_path: Path,
    method: str,
    calibrate: list[str],
    kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By kernels none of it does; else nothing up to the first piece. Carried tensors do not."""
    monkeypatch.setenv("MAGMERGE_KERNELS", kernels)
    if kernels == "off" and method in ("ties", "breadcrumbs"):
        pytest.skip("without kernels a survey sees tensors of torch")
    base, *experts = map(str, folders)
    for folder in folders:
        state = load_file(folder / "model.safetensors")
        save_file({**state, "ids": torch.arange(7)}, folder / "model.safetensors")
    arguments = f"base={base!r}, experts={experts!r}, method={method!r}, "
    arguments += f"calibrate={calibrate!r}, out={str(tmp_path / 'out')!r}"
    assert run(MERGE.format(arguments=arguments)) == "False\n"
    assert (tmp_path / "out").exists() == (is_here() and kernels == "auto")


def test_everything_promised_is_there() -> None:
    for name in magmerge.__all__:
        assert getattr(magmerge, name) is not None
    assert set(dir(magmerge)) == set(magmerge.__all__)
    with pytest.raises(AttributeError, match="mrege"):
        _ = magmerge.mrege


def test_front_door_names_survive_the_import_of_every_module() -> None:
    code = (
        "import pkgutil, importlib, magmerge\n"
        "for m in pkgutil.walk_packages(magmerge.__path__, 'magmerge.'): "
        "importlib.import_module(m.name)\n"
        "print([n for n in magmerge.__all__ if type(getattr(magmerge, n)).__name__ == 'module'])"
    )
    assert run(code) == "[]\n"
