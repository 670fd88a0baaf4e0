"""statistics(): sums over what an expert's layers are fed, in a file in place of its data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.input_sums import SumsWriter
from magmerge.checkpoints.output.target import check_apart, check_outside
from magmerge.core.dtypes import FLOATS
from magmerge.core.errors import ParameterError
from magmerge.core.types import Step, Uncovered
from magmerge.core.whole_file import check_free
from magmerge.engine.job import Work
from magmerge.engine.opening import experts_by_name
from magmerge.engine.plan import make_plan
from magmerge.engine.samples import inputs_of
from magmerge.engine.statistics import digests_of
from magmerge.live.gathering import gather_sums
from magmerge.pipeline.merge import DEFAULTS, job_of

if TYPE_CHECKING:
    from torch import Tensor


TAKEN = frozenset({"base", "experts", "data", "samples", "seed", "model", "build", "precision"})
TAKEN |= {"ignore", "rename", "weights", "threads", "memory", "device", "offload", "progress"}
"""Those of `merge`'s arguments that decide what a layer is fed, and where that is computed."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was gathered: of which expert, on how many samples, of which layers from how many tokens
    (places of a convolution), and which layers cannot be solved for from inputs.
    """

    path: Path
    expert: str
    samples: int
    layers: Mapping[str, int]
    uncovered: tuple[Uncovered, ...]

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        uncovered = [layer._asdict() for layer in self.uncovered]
        told = {"path": str(self.path), "expert": self.expert, "samples": self.samples}
        return {**told, "layers": dict(self.layers), "uncovered": uncovered}


def statistics(*, out: str | Path, overwrite: bool = False, **arguments: Any) -> Statistics:
    """Gather x'x of what each layer of one expert is fed on samples of its task, and write it to
    `out`, which `merge(calibrate="regmean", statistics={NAME: out})` takes in place of the data.

    The file is safetensors: for each weight [x, 1]'[x, 1] in float32, whose last row holds the sums
    of the features and the number of tokens; the header tells the models' digests and how the
    samples were drawn. One layer's sums are in memory at a time. The other arguments are those of
    `merge` that speak of models, samples, the model's run and the machine. Raises MagmergeError's
    children.
    """
    for name in arguments:
        if name not in TAKEN:
            raise TypeError(f"statistics() got an unexpected keyword argument {name!r}")
    path, named = Path(out), experts_by_name(arguments.get("experts", ()))
    if len(named) != 1:
        raise ParameterError(
            f"{len(named)} experts are given",
            remedy="gather the statistics of one expert at a time: --expert (experts=)",
        )
    check_free(path, overwrite=overwrite)
    told = {"method": "average", "calibrate": "regmean", "experts": named}
    job = job_of({**DEFAULTS, **arguments, **told})
    drawn = job.recipe.samples
    assert drawn is not None
    data = [Path(source) for source in drawn.data.values() if lexists(source)]
    check_apart(path, [*job.input_files, *data])
    check_outside(path, [*job.input_folders, *filter(Path.is_dir, data)])
    plan, inputs = make_plan(job), inputs_of(job)
    (expert,) = named
    most, layers = _most(plan.steps), dict[str, int]()
    rows = sum(call.rows for call in inputs[expert])
    header = {"expert": expert, "rows": str(rows), "samples": drawn.model_dump_json()}
    header |= {"models": json.dumps(digests_of(job.inputs))}
    with SumsWriter(path, most, header) as writer:

        def keep(name: str, sums: Tensor) -> None:
            layers[name] = int(sums[-1, -1])
            writer.keep(name, sums)

        uncovered = gather_sums(Work(job, plan), inputs, keep)
    return Statistics(path, expert, rows, layers, uncovered)


def _most(steps: Sequence[Step]) -> dict[str, tuple[int, ...]]:
    """The layers that may be gathered, and at most how large their sums are."""
    sizes: dict[str, tuple[int, ...]] = {}
    for step in steps:
        if step.calibrated and step.spec.dtype in FLOATS and len(step.spec.shape) > 1:
            first, *rest = step.spec.shape
            size = max(first, math.prod(rest)) + 1
            sizes[step.spec.name] = (size, size)
    return sizes
