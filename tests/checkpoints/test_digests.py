from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.checkpoints import digests
from magmerge.checkpoints.digests import DigestMemory, default_path


def old(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as settled."""
    path.write_bytes(content)
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    return path


def test_a_digest_is_sha256sums(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc" * 100_000)
    assert DigestMemory().digest(file) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old(tmp_path / "a", b"one", monkeypatch)
    first = DigestMemory()
    found = first.digest(file)
    first.save()
    monkeypatch.setattr(digests, "file_digest", lambda _: pytest.fail("it was read again"))
    assert DigestMemory().digest(file) == found


def test_a_changed_file_is_read_again_even_with_its_old_time_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old(tmp_path / "a", b"one", monkeypatch)
    before, memory = file.stat(), DigestMemory()
    memory.digest(file)
    memory.save()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert DigestMemory().digest(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    memory = DigestMemory()
    memory.digest(file)
    memory.save()
    assert default_path().read_text() == "{}"


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    memory = DigestMemory(tmp_path / "taken" / "digests.json")
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert memory.digest(file) == hashlib.sha256(b"one").hexdigest()
    memory.save()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.sampled_from([b"[]", b'{"a": 1}', b"[" * 9000]))
def test_a_spoilt_cache_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digests.json").write_bytes(content)
    (tmp_path / "a").write_bytes(b"one")
    memory = DigestMemory(tmp_path / "digests.json")
    assert memory.digest(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()
