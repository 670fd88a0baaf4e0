"""A large file on the hub, read by ranges of its bytes, again where a connection breaks."""

from __future__ import annotations

import threading
import time
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from magmerge.checkpoints.hub.hub_faults import endpoint, hub_faults, hub_library
from magmerge.core.errors import CheckpointError
from magmerge.core.model_strings import Part

TRIES = 6
"""How often a range is asked for before it is given up."""
FIRST_WAIT = 0.5
"""Seconds before the second try, doubled before each other."""
TIMEOUT = 30.0
AGAIN = frozenset({408, 429, 500, 502, 503, 504})
EXPIRED = frozenset({400, 401, 403, 404, 410})
"""Answers of a storage whose signed address is too old."""


class ShortRangeError(ConnectionError):
    """An answer held fewer bytes than were asked for."""


class RemoteFile:
    """One file of a model at a commit. The address of its storage is asked for once, and anew where
    it is refused; a token is sent to the hub alone.
    """

    def __init__(self, part: Part, name: str, size: int) -> None:
        self.part, self.name, self.size = part, name, size
        self._place: str | None = None
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop). CheckpointError where the hub does not give them."""
        if stop <= start:
            return b""
        with hub_faults(self.part):
            for turn in range(TRIES):
                try:
                    return self._range(start, stop)
                except Exception as error:
                    if turn + 1 == TRIES or not _is_passing(error):
                        raise
                    time.sleep(FIRST_WAIT * 2**turn)
        raise AssertionError

    def _range(self, start: int, stop: int) -> bytes:
        library = import_module("huggingface_hub.utils")
        place = self._located()
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        own = urlsplit(place).netloc == urlsplit(endpoint()).netloc
        if own:
            headers = {**library.build_hf_headers(), **headers}
        answer = library.get_session().get(place, headers=headers, timeout=TIMEOUT)
        if answer.status_code in EXPIRED and not own:
            with self._lock:
                self._place = None
            raise ShortRangeError
        library.hf_raise_for_status(answer)
        if answer.status_code != 206 and (start, stop) != (0, self.size):
            raise CheckpointError(
                f"{self.name} is not served by ranges of bytes ({answer.status_code})",
                source=self.part,
                remedy="fetch it whole: drop --stream (stream=)",
            )
        content: bytes = answer.content
        if len(content) != stop - start:
            raise ShortRangeError
        return content

    def _located(self) -> str:
        """The address of its bytes."""
        with self._lock:
            if self._place is None:
                self._place = self._ask()
            return self._place

    def _ask(self) -> str:
        library = hub_library()
        url = library.hf_hub_url(
            self.part.place, self.name, revision=self.part.revision, endpoint=endpoint()
        )
        told: Any = library.get_hf_file_metadata(url)
        if told.size is not None and told.size != self.size:
            raise CheckpointError(
                f"{self.name} has {told.size} bytes where it is kept, and {self.size} are listed",
                source=self.part,
                remedy="try again later: the hub is changing it",
            )
        location: str = told.location
        return location


def _is_passing(error: Exception) -> bool:
    """Whether the same may go well in a moment."""
    if isinstance(error, CheckpointError | hub_library().errors.OfflineModeIsEnabled):
        return False
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code in AGAIN if code is not None else True
