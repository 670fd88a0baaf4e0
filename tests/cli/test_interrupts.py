"""Ctrl-C: exit code 130 and one line at once, whatever is being imported or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = r"""
    import os, signal, sys
    from importlib.abc import MetaPathFinder

    module, handling = sys.argv[1:3]
    sys.argv[:] = ["magmerge", *sys.argv[3:]]
    # A shell's background job is started deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class AtImport(MetaPathFinder):
        def find_spec(self, name, *_):
            if name == module:
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                except KeyboardInterrupt as stop:
                    if handling == "changed":
                        raise ImportError("something is wrong with the installation") from stop
                    raise

    sys.meta_path.insert(0, AtImport())
    from magmerge.__main__ import program
    program()
"""


def stopped(module: str, *words: object, handling: str = "left") -> tuple[int, str, str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), module, handling, *map(str, words)]
    # Kernels would need no torch.
    environment = {**os.environ, "MAGMERGE_KERNELS": "off"}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize(
    "module", ["yaml", "pydantic", "magmerge.cli.merge", "torch", "magmerge.engine.steps"]
)
@pytest.mark.parametrize("handling", ["left", "changed"])
def test_an_import_is_left_at_once(
    folders: list[Path], tmp_path: Path, module: str, handling: str
) -> None:
    words = ("merge", "--base", folders[0], "--expert", folders[1], tmp_path / "out")
    code, _, said = stopped(module, *words, handling=handling)
    assert (code, said) == (130, "stopped; nothing was left at the output\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f.name for f in folders)


@pytest.mark.parametrize("handling", ["left", "changed"])
def test_what_is_being_written_is_put_away_first(
    folders: list[Path], tmp_path: Path, handling: str
) -> None:
    # The report's pictures are the last that a calibration imports.
    words = ("merge", "--base", folders[0], "--expert", folders[1], "--calibrate", "wsc")
    code, _, said = stopped("magmerge.report.page", *words, tmp_path / "out", handling=handling)
    assert code == 130
    assert said.splitlines()[-1] == "stopped; nothing was left at the output"
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f.name for f in folders)


def test_a_program_reads_the_same_error(folders: list[Path], tmp_path: Path) -> None:
    words = ("merge", "--base", folders[0], "--expert", folders[1], "--json", tmp_path / "out")
    for module in ("pydantic", "torch"):
        code, told, said = stopped(module, *words)
        assert (code, said) == (130, "")
        error = json.loads(told)["error"]
        assert error["problem"] == "stopped; nothing was left at the output"
        assert error["kind"] == "MagmergeError"
