"""The nouns of samples: what is asked for, the rows that were drawn, and a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from magmerge.core.errors import MagmergeError, ParameterError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Picture: TypeAlias = Path | Image
else:
    Picture: TypeAlias = Any

Source: TypeAlias = Any
"""A path, the name of a data set, a tensor, a list of texts, or an iterable of model inputs."""


class DataError(MagmergeError):
    """Samples are missing, broken, of an unknown kind, or of the test split."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One call of a model, `model(*args, **kwargs)`, on `rows` samples; tensors are on the CPU."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: int


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, for a tokenizer to prepare; with `pairs` each row is a text and its second one."""

    values: tuple[str, ...]
    pairs: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation: its messages, each with `role` and `content`, as chat templates take it."""

    messages: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Chats:
    """Conversations, for a tokenizer with a chat template to prepare."""

    values: tuple[Chat, ...]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Images:
    """Image files, or decoded images, for an image processor to prepare."""

    values: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Ready inputs by place and by keyword, all with the same first dimension: the rows."""

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter((*self.args, *self.kwargs.values()))))


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of the model that a program gave; they are used as they are."""

    calls: tuple[Inputs, ...]

    def __len__(self) -> int:
        return sum(call.rows for call in self.calls)


@dataclass(frozen=True, slots=True)
class Rows:
    """The samples drawn from one source, not yet prepared for a model.

    `labels` are None unless they were asked for; `classes` are the labels' names where the source
    tells them, in the order of their numbers. `notes` say what was passed over.
    """

    name: str
    source: str
    content: Texts | Chats | Images | Tensors | Calls
    labels: tuple[Any, ...] | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How rows become inputs where the model's own folder does not say it.

    `max_length` is in tokens. `image_size` is the side of the square, or (height, width), in
    pixels; `mean` and `std` are of each colour, for values from 0 to 1.
    """

    max_length: int | None = None
    image_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class SampleDraw:
    """Which rows of a source are read: `samples` of them by (seed, name), None for all in order.

    `field` is the column of the texts or images, or several with commas, joined; `label_field` that
    of labels; with `pair_field` a row is a pair of texts, the second from that column. `split` is
    the part of the source, that of test only where it is allowed. `fewer`: where there are fewer
    rows than `samples`, all are read. `passed`: so many rows of the draw are passed over first.
    ParameterError for a number or a seed that is none.
    """

    name: str
    samples: int | None = 8
    seed: int = 0
    field: str | None = None
    label_field: str | None = None
    pair_field: str | None = None
    split: str | None = None
    allow_test: bool = False
    fewer: bool = False
    passed: int = 0

    @property
    def least(self) -> int:
        """How many rows there must be."""
        return 1 if self.fewer or self.samples is None else self.samples

    def __post_init__(self) -> None:
        if self.samples is not None and (not isinstance(self.samples, int) or self.samples < 1):
            raise ParameterError(
                f"{self.samples} samples", remedy="draw one or more with --samples (samples=)"
            )
        if not isinstance(self.seed, int):
            raise ParameterError(f"the seed is {self.seed!r}", remedy="give a whole number")


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What is drawn from each source and how it is prepared, the same for all experts.

    `samples` rows by `seed`, from the column `text_field` and the split `split`; `batch` rows in
    one call of the model. The other fields are those of `Preparation`.
    """

    samples: int = 8
    seed: int = 0
    text_field: str | None = None
    max_length: int | None = None
    image_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    allow_test: bool = False
    split: str | None = None
    batch: int = 8

    @property
    def prepared(self) -> dict[str, Any]:
        """What is said of drawing and preparing beside number and seed, as data for a recipe."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            if field.name not in ("samples", "seed")
            and (value := getattr(self, field.name)) != field.default
        }

    def draw(self, name: str, label_field: str | None = None) -> SampleDraw:
        """The part that says which rows are read of the source of that name."""
        return SampleDraw(
            name, self.samples, self.seed, self.text_field, label_field,
            split=self.split, allow_test=self.allow_test,
        )  # fmt: skip

    @property
    def preparation(self) -> Preparation:
        """The part that says how rows become inputs."""
        return Preparation(self.max_length, self.image_size, self.mean, self.std)
