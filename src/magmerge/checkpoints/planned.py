"""A model that is planned and not made yet: its headers are known, its numbers are not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from magmerge.core.errors import CheckpointError
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class PlannedCheckpoint:
    """The result of a plan, as the model of a further plan. Reading from it is an error."""

    def __init__(
        self,
        source: str,
        specs: Mapping[str, TensorSpec],
        ties: Mapping[str, str],
        folder: Path | None,
    ) -> None:
        self.source, self.specs, self.ties, self.folder = source, specs, ties, folder
        self.files: tuple[Path, ...] = ()
        self.kinds: Mapping[str, Kind] = {}
        self.notes: tuple[str, ...] = ()

    def read(self, name: str, *_: object, **__: object) -> Tensor:
        """Always an error: there is nothing to read yet."""
        raise CheckpointError(
            "it is the result of another document, and is not made yet",
            source=self.source,
            tensor=name,
            remedy="merge the recipe: magmerge merge RECIPE.yaml OUT",
        )

    read_part = read
