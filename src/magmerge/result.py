"""What a merge or calibration returns, and how it is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from magmerge import dtypes
from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.donor import companion_files, read_companions
from magmerge.checkpoints.layout import lay_out
from magmerge.checkpoints.staging import Staging, check_space, check_target
from magmerge.checkpoints.writer import FileSink
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
        target = Target.at(out, self.sources, overwrite=overwrite)
        steps, shards = lay_out(
            self.plan.steps,
            dtypes.parse_size(shard_size),
            target.single_file,
            target.metadata(self.recipe),
        )
        plan = Plan(
            self.plan.digest,
            tuple(steps),
            tuple(shards),
            sum(shard.size for shard in shards),
            self.plan.memory,
            self.plan.copied,
            self.plan.warnings,
        )
        check_space(target.path, plan.disk)
        tensors = self.state_dict()
        with Staging(target.path, single=target.single) as staging, FileSink(plan, staging) as sink:
            for step in plan.steps:
                sink.write(step, tensors[step.spec.name])
            digests = [
                digest_inputs(role, name, files) for role, name, files in inputs_of(self.sources)
            ]
            text = document(self.recipe, digests, self.records, self.warnings)
            sink.publish(extra_files(target, text, self.donor, self.recipe.dtype))
        return target.path


@dataclass(frozen=True, slots=True)
class Target:
    """Where a result goes: a folder, or one file."""

    path: Path

    @classmethod
    def at(cls, out: str | Path, sources: Sources, *, overwrite: bool) -> Target:
        """The target, checked: OutputError where it is taken or is an input."""
        target = cls(Path(out))
        paths = [path for _, _, files in inputs_of(sources) for path in files]
        folders = [sources.layout.folder, sources.base.folder if sources.base else None]
        paths += [folder for folder in folders if folder is not None]
        check_target(target.path, paths, single=target.single, overwrite=overwrite)
        return target

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


def extra_files(
    target: Target, provenance: str, donor: Path | None, dtype: str | None
) -> dict[str, bytes]:
    """The files beside the tensors, by name."""
    files = {} if target.single else read_companions(companion_files(donor), dtype)
    files[target.record_file] = provenance.encode()
    return files


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
