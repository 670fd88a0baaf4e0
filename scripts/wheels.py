"""Wheels for all platforms, cross-built on Linux by zig's C compiler (pip install ziglang).

    python -m scripts.wheels FOLDER [PLATFORM ...]

Only those for Linux are run by anybody here (scripts/arm64.py); docs/kernels.md says so.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "macosx_10_13_x86_64": "x86_64-macos.10.13",
    "win_amd64": "x86_64-windows-gnu",
}
"""For each platform, as wheels are named for it, what zig calls it."""


def compiler(target: str) -> str:
    """The words that start zig's compiler for a target. A named target is a baseline processor."""
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        raise SystemExit("ziglang is not installed\n  remedy: pip install ziglang")
    return f"{Path(package.origin).with_name('zig')} cc -target {target}"


def build(platform: str, folder: Path) -> Path:
    """The wheel of one platform, in the folder."""
    own = {"CC": compiler(TARGETS[platform]), "MAGMERGE_WHEEL_PLATFORM": platform}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(ROOT)], check=True, env=os.environ | own)
    (wheel,) = folder.glob(f"magmerge-*-py3-none-{platform}.whl")
    return wheel


def check(wheel: Path) -> str:
    """The library in a wheel; SystemExit where it asks for a newer C library than the wheel's name
    promises.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = fnmatch.filter(archive.namelist(), "magmerge/kernels/kernels.*.*.*")
        raw = archive.read(name)
    newest = max((tuple(map(int, v)) for v in re.findall(rb"GLIBC_(\d+)\.(\d+)", raw)), default=())
    promised = re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)
    if promised is not None and newest > tuple(map(int, promised.groups())):
        raise SystemExit(f"{wheel.name}: its library needs glibc {'.'.join(map(str, newest))}")
    return f"{wheel.name}: {name}, {len(raw)} bytes"


def main() -> None:
    """Build and check those that are named, or all."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder, platforms = Path(sys.argv[1]), sys.argv[2:] or [*TARGETS]
    unknown = set(platforms) - TARGETS.keys()
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}\n  remedy: choose of {', '.join(TARGETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for platform in platforms:
        print(check(build(platform, folder)), flush=True)


if __name__ == "__main__":
    main()
