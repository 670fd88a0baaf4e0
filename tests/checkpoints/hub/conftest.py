"""A hub on this machine, and a cache of its library's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that HF_ENDPOINT leads to, with an empty cache, and no token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving() as served:
        for name, value in (
            ("ENDPOINT", served.endpoint),
            (
                "HUGGINGFACE_CO_URL_TEMPLATE",
                served.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            ),
            ("HF_HUB_CACHE", str(tmp_path / "hf" / "hub")),
            ("HF_XET_CACHE", str(tmp_path / "hf" / "xet")),
            ("HF_TOKEN_PATH", str(tmp_path / "hf" / "token")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
        ):
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield served
