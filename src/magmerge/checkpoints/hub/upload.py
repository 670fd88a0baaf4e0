"""Files to a model's repository on the hub, in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magmerge.checkpoints.hub.hub_faults import endpoint, hub_faults, hub_library, is_offline
from magmerge.core.errors import OutputError, ParameterError
from magmerge.core.model_strings import ID, Part

LOGIN = "log in with a token that may write: hf auth login"


AGAIN = "magmerge push OUT {}"


def check_repo(repo: str) -> None:
    """ParameterError for what is no name of a repository."""
    match = ID.fullmatch(repo)
    if match is None or match["revision"] is not None or ".." in repo or "--" in repo:
        raise ParameterError(
            f"{repo!r} is no name of a repository", remedy="write ORG/NAME, such as me/my-merge"
        )


def check_upload(repo: str, *, private: bool) -> bool:
    """Whether the repository is there. Found before any work is what would stop an upload: no
    library, no network, no token, a name that is none, or a repository that others can see where a
    private one is asked for.
    """
    check_repo(repo)
    library, part = hub_library(), Part(repo, None, on_hub=True)
    if is_offline():
        raise OutputError(
            "nothing can be sent while HF_HUB_OFFLINE is set",
            source=repo,
            remedy="run it with HF_HUB_OFFLINE=0",
        )
    if library.get_token() is None:
        raise OutputError("the hub takes nothing without a token", source=repo, remedy=LOGIN)
    api = library.HfApi(endpoint=endpoint())
    with hub_faults(part, AGAIN.format(repo)):
        try:
            told: Any = api.model_info(repo)
        except library.errors.RepositoryNotFoundError:
            return False
    if private and not told.private:
        raise OutputError(
            "it is there already, for all to see, and a private one is asked for",
            source=f"{endpoint()}/{repo}",
            remedy="name another repository, make it private in its settings, or drop --private",
        )
    return True


def upload(files: Mapping[str, Path], repo: str, *, private: bool) -> str:
    """Send files to `repo`, which is made where it is not there; the address of the commit."""
    there = check_upload(repo, private=private)
    library, part = hub_library(), Part(repo, None, on_hub=True)
    api = library.HfApi(endpoint=endpoint())
    operations = [
        library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in files.items()
    ]
    with hub_faults(part, AGAIN.format(repo)):
        if not there:
            # None leaves the choice to the settings of an organisation.
            api.create_repo(repo, private=private or None, exist_ok=True)
        try:
            told = api.create_commit(
                repo, operations, commit_message="Upload a model merged by magmerge"
            )
        except ValueError as error:
            raise OutputError(
                "the hub does not take the head of README.md, or another of the files",
                source=repo,
                remedy="mend the YAML between the two lines of --- in README.md, and push again",
            ) from error
    address: str = told.commit_url
    return address
