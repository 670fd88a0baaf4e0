from __future__ import annotations

import subprocess
import sys

import pytest

import magmerge


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
