"""Computing a figure's numbers: what is known already is kept, and each new point written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.formats.keys import CONFIG
from magmerge.checkpoints.digests import DigestMemory
from magmerge.checkpoints.output.own_files import is_own_record, not_own
from magmerge.core.errors import MagmergeError, OutputError, ParameterError
from magmerge.core.version import __version__
from magmerge.evaluation.entries import path_of
from magmerge.studies.figures.document import (
    CURVES,
    Coefficients,
    Curves,
    Document,
    Ranking,
    read_document,
    write_document,
)
from magmerge.studies.figures.figure_models import FigureInputs, FigureModels
from magmerge.studies.figures.figure_spec import FigureSpec, LayerOrder
from magmerge.studies.figures.points import (
    PointPlace,
    factors,
    harms,
    order_of,
    places,
    rank,
    score_points,
    with_worst,
)

LABEL = "points"
HOW = ("split", "params", "gate", "dtype")
"""Of a request, what changes the numbers of every point."""
T = TypeVar("T", Curves, Coefficients, Ranking)
P = TypeVar("P", Curves, Coefficients)


@dataclass(frozen=True, slots=True)
class Numbers:
    """One figure's numbers, which go to the file `path`."""

    request: FigureSpec
    inputs: FigureInputs
    path: Path
    overwrite: bool = False

    def compute(self) -> tuple[Document, int]:
        """The document, written; and how many points were not known yet."""
        kind = self.request.kind
        if kind in CURVES:
            return self._curves()
        return self._coefficients() if kind == "coefficients" else self._ranking()

    def _curves(self) -> tuple[Curves, int]:
        request = self.request
        if request.needs_samples or (request.kind == "alpha" and request.order is None):
            self.inputs.check_samples()
        head = self._head()
        earlier = self._earlier(Curves, head["digest"])
        order = self._order(earlier)
        if request.kind == "alpha" and max(request.values) > order.ranked:
            raise ParameterError(
                f"{max(request.values):g} sensitive layers are wanted, "
                f"and {order.ranked} are ranked",
                remedy=f"give numbers up to {order.ranked}, or a longer list with --sensitive",
            )
        axis = {"calibrations": request.calibrations, "values": request.values}
        listed = {"sensitive": order.layers, "ranked": order.ranked}
        document = (earlier or Curves(**head, split=request.split)).model_copy(
            update={**head, **axis, **listed}
        )
        return self._fill(document, lambda models, keys: score_points(models, keys, order.layers))

    def _coefficients(self) -> tuple[Coefficients, int]:
        if self.request.needs_samples:
            self.inputs.check_samples()
        head = self._head()
        document = (self._earlier(Coefficients, head["digest"]) or Coefficients(**head)).model_copy(
            update={**head, "calibrations": self.request.calibrations}
        )
        return self._fill(
            document, lambda models, keys: ((factors(models, key), {}) for key in keys)
        )

    def _ranking(self) -> tuple[Ranking, int]:
        head = {**self._head(), "alpha": self.request.alpha}
        document = self._earlier(Ranking, head["digest"])
        computed = document is None
        if document is None:
            ranking = rank(self.inputs, self.request)
            facts = {key: getattr(ranking, key) for key in ("score", "mode", "factor")}
            document = Ranking(**head, **facts, rows=ranking.samples, layers=harms(ranking))
        document = with_worst(document.model_copy(update=head))
        write_document(self.path, document)
        return document, int(computed)

    def _fill(
        self,
        document: P,
        measure: Callable[[FigureModels, list[PointPlace]], Iterable[tuple[Any, dict[str, Any]]]],
    ) -> tuple[P, int]:
        """Measure the places that have no point yet; the file is written after each."""
        models: FigureModels = FigureModels(self.inputs, self.request)
        keys = places(self.request)
        points: dict[Any, Any] = {point.key: point for point in document.points}
        missing = [key for key in keys if key not in points]
        done = len(keys) - len(missing)
        progress = self.request.machine.progress or (lambda *_: None)
        progress(LABEL, done, len(keys))
        for number, (point, facts) in enumerate(measure(models, missing), done + 1):
            points[point.key] = point
            messages = tuple(dict.fromkeys((*document.warnings, *models.warned)))
            content = {**facts, "points": tuple(points.values()), "warnings": messages}
            document = document.model_copy(update=content)
            write_document(self.path, document)
            progress(LABEL, number, len(keys))
        write_document(self.path, document)
        return document, len(missing)

    def _head(self) -> dict[str, Any]:
        """What all figures' documents begin with."""
        settings, request = settings_of(self.inputs, self.request), self.request
        drawn = request.needs_samples and request.kind != "samples"
        return {
            "magmerge": __version__,
            "kind": request.kind,
            "digest": digest_of(request, settings, self.inputs),
            "suite": self.inputs.entry.suite,
            "settings": settings,
            "methods": request.methods,
            "samples": request.samples if drawn else None,
            "seeds": request.seeds,
            "gate": request.gate,
            "sensitive": request.sensitive,
        }

    def _order(self, earlier: Curves | None) -> LayerOrder:
        """The sensitive layers, for alpha from the most sensitive one on."""
        if self.request.kind != "alpha":
            return LayerOrder(self.request.sensitive, len(self.request.sensitive))
        if self.request.order is not None:
            return self.request.order
        if earlier is not None and earlier.ranked is not None:
            return LayerOrder(earlier.sensitive, earlier.ranked)
        return order_of(harms(rank(self.inputs, self.request)))

    def _earlier(self, shape: type[T], digest: str) -> T | None:
        """The document that is there already, if it is of the same settings.

        OutputError where it is not, unless it may be replaced.
        """
        if not self.path.exists():
            return None
        try:
            document: Document | None = read_document(self.path)
        except MagmergeError:
            if not is_own_record(self.path):
                raise not_own(self.path) from None
            if not self.overwrite:
                raise
            document = None
        if (
            isinstance(document, shape)
            and document.kind == self.request.kind
            and document.digest == digest
        ):
            return document
        if not self.overwrite:
            raise OutputError(
                "it holds the numbers of other models or settings",
                source=self.path,
                remedy="name another figure, or pass --yes (overwrite=True) to begin anew",
            )
        return None


def settings_of(inputs: FigureInputs, request: FigureSpec) -> dict[str, Any]:
    """For a reader: models, samples, and how they are used.

    What the figure shows, as its merges and seeds, is not among them: more of it can be added.
    """
    kind, order = request.kind, request.order
    settings = {
        "suite": str(inputs.suite.path),
        "base": inputs.base,
        "experts": dict(inputs.experts),
        "data": {name: [draw.source for draw in sources] for name, sources in inputs.draws.items()},
        **({} if kind == "samples" else {"samples": request.samples}),
        **{key: getattr(request, key) for key in HOW},
        "device": request.machine.device,
        "tasks": list(request.tasks or inputs.suite.tasks),
        "sensitive": list(order.layers if order else request.sensitive),
    }
    if kind == "sensitivity" or (kind == "alpha" and not order):
        settings["mode"] = request.mode
    return settings


def digest_of(request: FigureSpec, settings: Mapping[str, Any], inputs: FigureInputs) -> str:
    """One digest of the settings and of the content of all files that they name."""
    memory = DigestMemory()
    plain = json.loads(json.dumps(settings, default=str))
    parts: list[Any] = [__version__, request.kind, plain, inputs.entry.model_dump(mode="json")]
    parts.append([asdict(draw) for own in inputs.draws.values() for draw in own])
    for file in _files(inputs, request.split, settings["tasks"]):
        parts.append([file.name, memory.digest(file)])
    memory.save()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(inputs: FigureInputs, split: str, tasks: Iterable[str]) -> Iterator[Path]:
    """Weights, heads and rows; a data set of the hub is known by its name alone."""
    for model in (inputs.base, *inputs.experts.values()):
        yield from open_checkpoint(model).files
        if (Path(model) / CONFIG).is_file():
            yield Path(model) / CONFIG
    named = [draw.source for own in inputs.draws.values() for draw in own]
    for task in tasks:
        entry = inputs.entry.tasks[task]
        data = entry.data if isinstance(entry.data, str) else entry.data.get(split)
        folder = inputs.suite.path.parent
        named += [path_of(folder, path) for path in (data, entry.head) if path is not None]
    for path in map(Path, named):
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
