"""What a merge or calibration returns, and how it is saved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from magmerge import dtypes
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.donor import companion_files, read_companions
from magmerge.checkpoints.layout import lay_out
from magmerge.checkpoints.staging import Staging
from magmerge.checkpoints.target import check_space, check_target
from magmerge.checkpoints.writer import FileSink
from magmerge.errors import MagmergeWarning, OutputError
from magmerge.provenance import FILE, document, file_digest
from magmerge.recipe import Recipe
from magmerge.types import LayerRecord, Plan, Sources
from magmerge.version import __version__


@dataclass(frozen=True, slots=True)
class Result:
    """A finished merge or calibration.

    `records` say what was done to each layer; `path` is where it was written, None if it is in
    memory only.
    """

    recipe: Recipe
    plan: Plan
    records: tuple[LayerRecord, ...]
    warnings: tuple[str, ...]
    path: Path | None
    sources: Sources
    donor: Path | None
    tensors: Mapping[str, Tensor] | None

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the result by name, in the order of the model; read from disk if there."""
        names = [step.spec.name for step in self.plan.steps]
        if self.tensors is not None:
            return {name: self.tensors[name] for name in names}
        assert self.path is not None
        checkpoint = open_checkpoint(self.path)
        return {name: checkpoint.read(name) for name in names}

    def save(
        self, out: str | Path, *, overwrite: bool = False, shard_size: str | int = "5GB"
    ) -> Path:
        """Write the result as a checkpoint folder, or as one file if `out` ends in .safetensors."""
        target = Target.at(out, self.sources, overwrite=overwrite, donor=self.donor)
        steps, shards = lay_out(
            self.plan.steps,
            dtypes.parse_size(shard_size),
            target.single_file,
            target.metadata(self.recipe),
        )
        disk = sum(shard.size for shard in shards)
        plan = replace(self.plan, steps=tuple(steps), shards=tuple(shards), disk=disk)
        warn_of_no_config(target, self.donor)
        extra = companions(target, self.donor, self.recipe.dtype)
        check_space(target.path, plan.disk)
        tensors = self.state_dict()
        with target.staging() as staging, FileSink(plan, staging) as sink:
            for step in plan.steps:
                sink.write(step, tensors[step.spec.name])
            digests = [
                digest_inputs(role, name, files) for role, name, files in inputs_of(self.sources)
            ]
            text = document(self.recipe, digests, self.records, self.warnings)
            sink.publish({**extra, target.record_file: text.encode()})
        return target.path

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"at {self.path}"
        steps = [self.recipe.method or "calibration", *(c.method for c in self.recipe.calibrate)]
        return f"<Result of {' + '.join(steps)}: {len(self.plan.steps)} tensors {where}>"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: a folder, or one file."""

    path: Path
    overwrite: bool

    @classmethod
    def at(
        cls, out: str | Path, sources: Sources, *, overwrite: bool, donor: Path | None
    ) -> Target:
        """The target, checked: OutputError where it is taken or is an input."""
        if str(out) == "":
            raise OutputError("the output's name is empty", remedy="name a folder or a file")
        given = Path(out)
        # A link is followed once, here: what is renamed in the end is what it leads to.
        indirect = given.is_symlink() or ".." in given.parts
        target = cls(given.resolve() if indirect else given, overwrite)
        paths = [path for _, _, files in inputs_of(sources) for path in files]
        paths += [path.parent for path in paths]
        paths += [folder for folder in (sources.layout.folder, donor) if folder is not None]
        check_target(target.path, paths, single=target.single, overwrite=overwrite)
        if target.single and not overwrite and (target.path.parent / target.record_file).exists():
            raise OutputError(
                "it exists already",
                source=target.path.parent / target.record_file,
                remedy="pass --yes (overwrite=True) to replace it",
            )
        return target

    def staging(self) -> Staging:
        """Where it grows."""
        return Staging(self.path, single=self.single, overwrite=self.overwrite)

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.suffix == ".safetensors"

    @property
    def single_file(self) -> str | None:
        """The file's name, if it is one file."""
        return self.path.name if self.single else None

    @property
    def record_file(self) -> str:
        """Where the provenance goes, relative to the target's folder."""
        return f"{self.path.stem}.{FILE}" if self.single else FILE

    def metadata(self, recipe: Recipe) -> dict[str, str]:
        """What a single file carries of its provenance in its own header."""
        if not self.single:
            return {}
        return {
            "magmerge": __version__,
            "magmerge_recipe": json.dumps(recipe.model_dump(mode="json")),
        }


def companions(target: Target, donor: Path | None, dtype: str | None) -> dict[str, bytes]:
    """The files beside the tensors, by name; a single file has none."""
    return {} if target.single else read_companions(companion_files(donor), dtype)


def warn_of_no_config(target: Target, donor: Path | None) -> None:
    """A folder without config.json holds tensors, but no model that transformers can load."""
    if not target.single and "config.json" not in companion_files(donor):
        note = (
            f"{donor or 'a model in memory or in a single file'} has no config.json, so the result "
            "is tensors only; name the folder of a model with --donor (donor=)"
        )
        warnings.warn(note, MagmergeWarning, stacklevel=4)


def inputs_of(sources: Sources) -> list[tuple[str, str, Sequence[Path]]]:
    """Role, name and files of each model."""
    inputs: list[tuple[str, str, Sequence[Path]]] = []
    if sources.merged is not None:
        inputs.append(("merged", sources.merged.source, sources.merged.files))
    if sources.base is not None:
        inputs.append(("base", sources.base.source, sources.base.files))
    return inputs + [("expert", expert.source, expert.files) for expert in sources.experts]


def digest_inputs(role: str, source: str, files: Sequence[Path]) -> dict[str, Any]:
    """One input as the provenance tells it; a model in memory has no files."""
    return {
        "role": role,
        "source": source,
        "files": {file.name: file_digest(file) for file in files},
    }
