"""What goes wrong between here and the hub, each in one message with the command that helps."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from magmerge.core.errors import CheckpointError, MagmergeError, suggestion
from magmerge.core.extras import needed
from magmerge.core.model_strings import Part

CLIENTS = (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException"))
"""Libraries by which the hub's own speaks to it, and what all their errors are."""
LOGIN = "hf auth login"
AGAIN = "try it again, a little later"


def hub_library() -> Any:
    """huggingface_hub; MissingExtraError that names the extra where it is missing."""
    library = needed("huggingface_hub", "a model of the Hugging Face hub")
    for module in ("constants", "errors"):
        import_module(f"huggingface_hub.{module}")
    return library


def endpoint() -> str:
    """The hub's address."""
    address: str = hub_library().constants.ENDPOINT
    return address.rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps this process from the network."""
    return bool(hub_library().constants.HF_HUB_OFFLINE)


class UnreachableError(CheckpointError):
    """Nothing answers where the hub should be, or not what a hub answers."""


@contextmanager
def hub_faults(part: Part, way: str = "") -> Iterator[None]:
    """Turns errors of the hub's library into CheckpointErrors of `part`, without any text of
    theirs, which may tell what was sent. `way` is the command that does it once more; by default
    the one that fetches it.
    """
    try:
        yield
    except MagmergeError:
        raise
    except Exception as error:
        told = _explained(part, error, way or f"hf download {_command(part)}")
        if told is None:
            raise
        # The library's own error holds the request, with its headers.
        raise told from None


def _explained(part: Part, error: Exception, way: str) -> CheckpointError | None:
    """The error in magmerge's words; None for one that is not of the hub."""
    errors, page = hub_library().errors, f"{endpoint()}/{part.place}"
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        problem = "it is gated: its owner lets in those who ask"
        remedy = f"request access at {page}, then log in: {LOGIN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        problem = f"the hub has no revision {part.revision!r} of it"
        remedy = _revisions(part)
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = "the hub has no such model, or it is private"
        remedy = f"check the name at {page}; for a private one log in: {LOGIN}"
    elif isinstance(error, errors.EntryNotFoundError) and code is not None:
        problem = "a file that the hub lists is not there"
        remedy = f"look at {page}/tree/{part.revision or 'main'}"
    elif code in (401, 403):
        problem = f"the hub refuses ({code}): the token is wrong, or may not do this"
        remedy = f"log in with another: {LOGIN}"
    elif code is not None:
        problem = f"the hub answers with an error ({code})"
        remedy = f"{AGAIN}: {way}"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        return not_cached(part)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        problem = "the disk of the hub's cache is full"
        remedy = "free some of it, or set HF_HOME to a folder on another disk"
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        problem = f"the hub's cache cannot be written: {error.strerror}"
        remedy = "set HF_HOME to a folder that you may write"
    elif isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, *_client_errors())):
        return UnreachableError(
            f"the hub cannot be reached at {endpoint()}: {type(error).__name__}",
            source=part,
            remedy=f"check the network (HF_ENDPOINT, HTTPS_PROXY), then {way}",
        )
    elif isinstance(error, OSError | ValueError):
        problem = f"the hub's library gives up: {type(error).__name__}"
        remedy = f"{AGAIN}: {way}"
    else:
        return None
    return CheckpointError(problem, source=part, remedy=remedy)


def not_cached(part: Part) -> CheckpointError:
    """That a model is not here, and the network is off."""
    return CheckpointError(
        "it is not in the hub's cache, and HF_HUB_OFFLINE is set",
        source=part,
        remedy=f"with a network: HF_HUB_OFFLINE=0 hf download {_command(part)}",
    )


def _command(part: Part) -> str:
    return part.place if part.revision is None else f"{part.place} --revision {part.revision}"


def _client_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules.get(module), name) for module, name in CLIENTS]
    return tuple(getattr(module, name) for module, name in loaded if module is not None)


def _revisions(part: Part) -> str:
    """The revisions that a model has, as a remedy."""
    try:
        refs = hub_library().HfApi(endpoint=endpoint()).list_repo_refs(part.place)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:
        return f"look at {endpoint()}/{part.place}/refs"
    return suggestion(part.revision, names)
