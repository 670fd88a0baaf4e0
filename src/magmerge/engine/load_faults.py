"""What of a result's folder its own library would not load, told before the work."""

from __future__ import annotations

from magmerge.checkpoints.load_checks import BEYOND, Written, checks_of
from magmerge.checkpoints.output.target import Target
from magmerge.core.errors import Fault, StructureError
from magmerge.engine.job import Job
from magmerge.engine.outputs import result_texts


def load_faults(job: Job, target: Target) -> list[Fault]:
    """The faults of the folder that the job would write; none where it is forced, or no folder, but
    for a chat template that has no place.
    """
    if target.single and job.recipe.chat_template:
        remedy = "write a folder: drop .safetensors from the output's name; or drop --chat-template"
        return [Fault("a chat template is asked for, and a single file holds none", remedy)]
    if target.single or job.writes_adapter or job.model_output.force:
        return []
    layout = job.models.layout
    names = getattr(layout, "weights", {"": target.weights})
    files = [f"{part}/{name}".lstrip("/") for part, name in names.items()]
    written = Written(layout.specs, result_texts(job), files, tuple(getattr(layout, "parts", ())))
    place = "" if job.donor is None else f" in {job.donor}"
    # A base's own tokenizer may have a token beyond its rows, for padding: the base loads so too.
    as_it_came = job.donor == layout.folder and not job.models.texts
    return [
        Fault(
            f"{fault.text}: the result would not load",
            f"{fault.remedy}{'' if check.name == 'modules' else place}; "
            "--force (force=True) writes it all the same",
        )
        for check in checks_of(written)
        for fault in check.faults
        if not (as_it_came and fault.remedy == BEYOND)
    ]


def check_loads(job: Job, target: Target) -> None:
    """StructureError with all that is wrong with the folder."""
    faults = load_faults(job, target)
    if faults:
        raise StructureError(faults)
