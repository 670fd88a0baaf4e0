"""Computing a figure's numbers: what is known already is kept, and each new point written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from magmerge.checkpoints.own_files import is_own_record, not_own
from magmerge.errors import MagmergeError, OutputError
from magmerge.figures import layered
from magmerge.figures.asking import Asked
from magmerge.figures.curves import check_alpha, measured, notes_of, places
from magmerge.figures.document import (
    Coefficients,
    Curves,
    Document,
    Ranking,
    read_document,
    write_document,
)
from magmerge.figures.ground import Ground
from magmerge.figures.identity import digest_of_settings, settings_of
from magmerge.figures.layered import Order
from magmerge.figures.measuring import Bench, How, error_of, experts_of
from magmerge.machine import Progress
from magmerge.version import __version__

LABEL = "points"
T = TypeVar("T", Curves, Coefficients, Ranking)


@dataclass(frozen=True, slots=True)
class Making:
    """One figure's numbers to be made, at `numbers`.

    `order` is the sensitive layers' order where it is given; `alpha` and `mode` are those of a
    ranking that is computed.
    """

    asked: Asked
    ground: Ground
    how: How
    numbers: Path
    order: Order | None = None
    alpha: int = 10
    mode: str = "exact"
    overwrite: bool = False
    progress: Progress | None = None

    def settings(self) -> dict[str, Any]:
        """What the points depend on."""
        found = settings_of(self.ground, self.asked, self.how)
        if self.asked.kind == "sensitivity" or (self.asked.kind == "alpha" and not self.order):
            found["mode"] = self.mode
        if self.asked.kind == "alpha" and self.order is not None:
            found["sensitive"] = list(self.order.layers)
        return found

    def head(self) -> dict[str, Any]:
        """What all figures' documents begin with."""
        settings, kind = self.settings(), self.asked.kind
        return {
            "magmerge": __version__,
            "kind": kind,
            "digest": digest_of_settings(kind, settings, self.ground),
            "suite": self.ground.entry.suite,
            "settings": settings,
            "methods": self.asked.methods,
            "samples": self.asked.samples if self.asked.drawn and kind != "samples" else None,
            "seeds": self.asked.seeds,
            "gate": self.how.gate,
            "sensitive": self.how.sensitive,
        }

    def count(self, done: int, total: int) -> None:
        """Tell how many points are done."""
        if self.progress is not None:
            self.progress(LABEL, done, total)


def curves(making: Making) -> tuple[Curves, int]:
    """Scores against samples, lambda or alpha; and how many points were measured."""
    asked, ground = making.asked, making.ground
    if asked.drawn or (asked.kind == "alpha" and making.order is None):
        ground.check_samples()
    head = making.head()
    known = _known(making, head["digest"], Curves)
    order, listed = _order(making, known)
    check_alpha(asked.values if asked.kind == "alpha" else (), order)
    points = {} if known is None else {one.key: one for one in known.points}
    wanted = places(asked)
    missing = [place for place in wanted if place not in points]
    bench = Bench(ground, making.how)
    shown = {"calibrations": asked.calibrations, "values": asked.values}
    document = (known or Curves(**head, split=making.how.split)).model_copy(
        update={**head, **shown, "sensitive": listed, "ranked": order.ranked}
    )
    making.count(len(wanted) - len(missing), len(wanted))
    for number, (point, scores) in enumerate(measured(bench, asked, missing, order.layers), 1):
        points[point.key] = point
        found: dict[str, Any] = {
            "tasks": notes_of(scores),
            "error": error_of(scores),
            "experts": experts_of(scores),
            "points": tuple(points.values()),
            "warnings": tuple(dict.fromkeys((*document.warnings, *bench.warned))),
        }
        document = document.model_copy(update=found)
        write_document(making.numbers, document)
        making.count(len(wanted) - len(missing) + number, len(wanted))
    write_document(making.numbers, document)
    return document, len(missing)


def coefficients(making: Making) -> tuple[Coefficients, int]:
    """Each layer's factors; and how many calibrations were made."""
    asked = making.asked
    if asked.drawn:
        making.ground.check_samples()
    head = making.head()
    known = _known(making, head["digest"], Coefficients)
    points = {} if known is None else {one.key: one for one in known.points}
    wanted = layered.runs(asked)
    missing = [run for run in wanted if run not in points]
    bench = Bench(making.ground, making.how)
    document = (known or Coefficients(**head)).model_copy(
        update={**head, "calibrations": asked.calibrations}
    )
    making.count(len(wanted) - len(missing), len(wanted))
    for number, run in enumerate(missing, 1):
        points[run] = layered.factors(bench, asked, run)
        told = tuple(dict.fromkeys((*document.warnings, *bench.warned)))
        document = document.model_copy(update={"points": tuple(points.values()), "warnings": told})
        write_document(making.numbers, document)
        making.count(len(wanted) - len(missing) + number, len(wanted))
    write_document(making.numbers, document)
    return document, len(missing)


def ranking(making: Making) -> tuple[Ranking, int]:
    """Each layer's sensitivity; and how many rankings were computed."""
    head = making.head()
    known = _known(making, head["digest"], Ranking)
    if known is not None:
        document = known.model_copy(update={**head, "alpha": making.alpha})
        return _written(making, _marked(document)), 0
    found = layered.ranked(
        making.ground,
        samples=making.asked.samples,
        alpha=making.alpha,
        mode=making.mode,
        threads=making.how.threads,
        device=making.how.device,
        progress=making.progress,
    )
    document = Ranking.model_validate(
        {
            **head,
            "score": found.score,
            "mode": found.mode,
            "factor": found.factor,
            "alpha": making.alpha,
            "rows": found.samples,
            "layers": layered.harms(found),
        }
    )
    return _written(making, _marked(document)), 1


def ranking_of_file(path: Path, numbers: Path, alpha: int) -> Ranking:
    """A ranking that `magmerge sensitivity` wrote, as a figure's numbers."""
    found = layered.read_ranking(path)
    told = found.model_dump(exclude={"alpha", "sensitive", "samples"})
    document = Ranking.model_validate(
        {
            **told,
            "magmerge": __version__,
            "kind": "sensitivity",
            "digest": "",
            "suite": "",
            "settings": {"sensitive": str(path)},
            "alpha": alpha,
            "rows": found.samples,
        }
    )
    document = _marked(document)
    write_document(numbers, document)
    return document


def _marked(document: Ranking) -> Ranking:
    """With the `alpha` most sensitive layers listed."""
    worst = layered.order_of(document.layers).layers
    return document.model_copy(update={"sensitive": worst[: document.alpha]})


def _written(making: Making, document: Ranking) -> Ranking:
    write_document(making.numbers, document)
    return document


def _order(making: Making, known: Curves | None) -> tuple[Order, tuple[str, ...]]:
    """The layers that alpha goes through, and what the document lists as sensitive."""
    if making.asked.kind != "alpha":
        return Order(making.how.sensitive, len(making.how.sensitive)), making.how.sensitive
    order = making.order
    if order is None and known is not None and known.ranked is not None:
        order = Order(known.sensitive, known.ranked)
    if order is None:
        found = layered.ranked(
            making.ground,
            samples=making.asked.samples,
            mode=making.mode,
            threads=making.how.threads,
            device=making.how.device,
            progress=making.progress,
        )
        order = layered.order_of(layered.harms(found))
    return order, order.layers


def _known(making: Making, digest: str, shape: type[T]) -> T | None:
    """The document that is there already, if it is of the same settings.

    OutputError where it is not, unless it may be replaced.
    """
    if not making.numbers.exists():
        return None
    try:
        found: Document | None = read_document(making.numbers)
    except MagmergeError:
        if not is_own_record(making.numbers):
            raise not_own(making.numbers) from None
        if not making.overwrite:
            raise
        found = None
    if isinstance(found, shape) and found.kind == making.asked.kind and found.digest == digest:
        return found
    if not making.overwrite:
        raise OutputError(
            "it holds the numbers of other models or settings",
            source=making.numbers,
            remedy="name another figure, or pass --yes (overwrite=True) to begin anew",
        )
    return None
