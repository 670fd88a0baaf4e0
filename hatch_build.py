"""Compiles the kernels into the wheel, and beside their source for an editable installation.

Without a compiler the wheel has none in it, and says so: magmerge then compiles them at the first
merge, or merges by torch. MAGMERGE_WHEEL_PLATFORM, a platform as wheels are named for it, builds
for another machine, by the compiler that CC names (scripts/wheels.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "src"))

from magmerge.kernels.compile import (
    HERE,
    NoLibraryError,
    Target,
    build_library,
    find_compiler,
    this_machine,
)

SYSTEMS = {"win": "win32", "macosx": "darwin"}


class KernelsHook(BuildHookInterface):
    """Adds the library to what is built."""

    folder = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the wheel for its platform."""
        asked = os.environ.get("MAGMERGE_WHEEL_PLATFORM")
        target = target_of(asked) if asked else this_machine()
        editable = version == "editable"
        self.folder = None if editable else tempfile.mkdtemp(prefix="magmerge-kernels-")
        path = Path(self.folder or HERE, target.name)
        try:
            build_library(path, find_compiler(), target)
        except (NoLibraryError, OSError) as error:
            if asked:
                raise
            self.app.display_warning(f"no compiled kernels in this wheel: {error}")
            return
        if editable:
            for old in set(HERE.glob("kernels.*.*.*")) - {path}:
                old.unlink()
            return
        build_data["tag"] = f"py3-none-{asked or this_platform()}"
        build_data["pure_python"] = False
        build_data["force_include"][str(path)] = f"magmerge/kernels/{target.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled apart."""
        if self.folder is not None:
            shutil.rmtree(self.folder)


def this_platform() -> str:
    """This machine as wheels are named for it. A Python for two processors says so of itself, but
    the library is for one.
    """
    own = sysconfig.get_platform().replace("universal2", platform.machine())
    return own.replace("-", "_").replace(".", "_")


def target_of(name: str) -> Target:
    """The target of a platform, such as manylinux_2_17_x86_64, macosx_11_0_arm64, win_amd64."""
    system = SYSTEMS.get(name.partition("_")[0], "linux")
    arm = name.endswith(("arm64", "aarch64"))
    return Target(system, "aarch64" if arm else "x86_64")
