"""Runs magmerge's wheel for Linux arm64 on another processor, under qemu, with Debian's Python.

    apt-get install qemu-user-static
    python -m scripts.arm64 FOLDER WHEEL.whl [PYTEST-ARGUMENT ...]

FOLDER gets Debian 12's Python for arm64 and the packages that magmerge needs, once (1 GB). Then the
program tells of its library, and pytest runs: tests/kernels/test_levels.py, or what is named.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEBIAN = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libffi8"),
    *("zlib1g", "libexpat1", "libssl3", "libgcc-s1", "libstdc++6", "libgomp1", "libbz2-1.0"),
    *("liblzma5", "libuuid1", "libcrypt1", "libsqlite3-0"),
)
PACKAGES = (
    *("numpy", "safetensors", "pydantic", "annotated-types", "jaxtyping", "typing-extensions"),
    *("pyyaml", "typer", "rich", "pytest", "pytest-timeout", "hypothesis", "beartype"),
    *("sympy", "networkx", "jinja2", "filelock", "fsspec"),
)
"""What magmerge, its tests and torch need. pip takes torch's own list for that of this machine."""
TORCH = "torch==2.9.1"
"""The last that is small: later builds for arm64 bring CUDA with them."""
PLATFORMS = ("manylinux_2_17_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")


def system(folder: Path) -> None:
    """Debian's Python for arm64, out of packages whose lists are kept apart from this machine's."""
    root, state = folder / "root", folder / "apt"
    if root.exists():
        return
    for part in ("lists/partial", "cache/archives/partial", "debs"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    places = {"State::Lists": "lists", "State::Status": "status", "Cache": "cache"}
    options = ["APT::Architecture=arm64", "APT::Architectures=arm64"]
    options += [f"Dir::{key}={state / name}" for key, name in places.items()]
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN], check=True, cwd=state / "debs")
    for package in sorted((state / "debs").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)


def packages(folder: Path, wheel: Path) -> None:
    """The wheel, and what it needs, as pip chooses it for arm64."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "site")]
    pip += ["--python-version", "3.11", "--only-binary=:all:"]
    pip += [word for platform in PLATFORMS for word in ("--platform", platform)]
    if not (folder / "site" / "torch").exists():
        limits = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *limits, *PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", TORCH], check=True)
    subprocess.run([*pip, "--upgrade", "--no-deps", str(wheel)], check=True)


def run(folder: Path, *words: str) -> None:
    """That Python with these arguments, in the checkout, with the wheel's magmerge."""
    root = folder / "root"
    own = {"PYTHONPATH": str(folder / "site"), "XDG_CACHE_HOME": str(folder / "cache")}
    own |= {"OMP_NUM_THREADS": "1", "MAGMERGE_QUICK_TESTS": "1", "MAGMERGE_KERNELS": "neon"}
    python = ["qemu-aarch64-static", "-L", str(root), str(root / "usr/bin/python3.11")]
    subprocess.run([*python, *words], check=True, cwd=ROOT, env=os.environ | own)


def main() -> None:
    """Set up what is missing, and run."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    folder, wheel = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    system(folder)
    packages(folder, wheel)
    run(folder, "-m", "magmerge", "--version", "-v")
    tests = sys.argv[3:] or ["tests/kernels/test_levels.py"]
    run(folder, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "3600", *tests)


if __name__ == "__main__":
    main()
