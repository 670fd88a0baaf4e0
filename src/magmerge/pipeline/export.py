"""export(): a model handed over to other programs: to llama.cpp and Ollama as a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge.checkpoints.donor import CONFIG, VOCABULARIES
from magmerge.checkpoints.gguf.converter import (
    TYPES,
    check_takes,
    check_type,
    command_for,
    commands_to_get,
    convert,
    converter_at,
)
from magmerge.checkpoints.gguf.gguf_header import GgufHeader, read_gguf_header
from magmerge.checkpoints.loader import adapts, open_checkpoint
from magmerge.checkpoints.output.target import check_apart, check_space
from magmerge.checkpoints.tokens.chat_template import contents_of, template_of
from magmerge.core.errors import (
    CheckpointError,
    Fault,
    MagmergeError,
    OutputError,
    StructureError,
    no_such_model,
)
from magmerge.core.models import Checkpoint
from magmerge.core.whole_file import check_free, unfinished
from magmerge.engine.notes import warn
from magmerge.engine.verification import header_checks

TEMPLATE, TOKENS, TYPE = "tokenizer.chat_template", "tokenizer.ggml.tokens", "general.file_type"
BYTES = {"f32": 4.0, "q8_0": 1.07, "tq1_0": 0.3, "tq2_0": 0.3}
"""Of an entry; 2 in all other formats."""
NEWEST = "use a newer llama.cpp: --converter"
CODE = "the converter may run it"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was handed over: its size and tensors, whether it holds a template of chats, and
    the command that wrote it.
    """

    path: Path
    size: int
    tensors: int
    chat_template: bool
    command: tuple[str, ...]

    @property
    def modelfile(self) -> str:
        """What Ollama's Modelfile says of it: the template of chats is in the file itself."""
        return f"FROM {self.path.resolve()}\n"


def export(
    model: str | Path,
    out: str | Path,
    *,
    outtype: str = "auto",
    converter: str | Path | None = None,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Exported:
    """Write a model's folder as a GGUF file, by the converter of llama.cpp that the user has.

    The folder is checked first: that its library would load it, and that it has a tokenizer. The
    converter is `converter` (its file, or llama.cpp's folder), or what LLAMA_CPP names, or on the
    PATH; `outtype` is what it takes: auto, f32, f16, bf16, q8_0, tq1_0, tq2_0. What it wrote is
    read before it gets its name: its tensors, format, tokens, and the folder's template of chats.
    A folder with code of its own, which the converter may run, needs `allow_code`.

    Raises StructureError for a folder that would not load, MissingExtraError, with the commands to
    type, where there is no converter, OutputError where it fails, and MagmergeError's other
    children.
    """
    folder, file = Path(model), Path(out)
    check_type(outtype)
    checkpoint = _checked(folder, allow_code=allow_code)
    check_free(file, overwrite=overwrite)
    check_apart(file, [folder, *checkpoint.files])
    commands = commands_to_get(folder, file, outtype)
    program = converter_at(None if converter is None else Path(converter), commands)
    check_takes(program, outtype)
    entries = sum(math.prod(spec.shape) for spec in checkpoint.specs.values())
    check_space(file.absolute(), int(entries * BYTES.get(outtype, 2.0)))
    with unfinished(file.absolute()) as staged:
        command = command_for(program, folder.resolve(), staged, outtype)
        run = convert(command)
        if run.code:
            raise OutputError(
                f"the converter failed: {run.log}",
                source=program,
                remedy="see what it says; it may not know this architecture, or lack a library",
            )
        template = template_of(contents_of(folder, {}), folder)
        header = _sound(staged, program, template, TYPES[outtype])
        _note_missing(header, checkpoint)
        check_free(file, overwrite=overwrite)
        size = staged.stat().st_size
    return Exported(file, size, len(header.tensors), template is not None, tuple(command))


def _checked(folder: Path, *, allow_code: bool) -> Checkpoint:
    """The model, found to be a folder that loads, with a tokenizer; StructureError with all that
    is wrong with it.
    """
    if not folder.exists():
        raise no_such_model(folder)
    if adapts(folder):
        raise CheckpointError(
            "it is an adapter, and what is exported is a whole model",
            source=folder,
            remedy="merge it into its base: magmerge merge --base B --expert "
            f"{folder}=1 OUT, and export OUT",
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"the converter reads a model's folder with {CONFIG}, and this is none",
            source=folder,
            remedy="write one: magmerge merge into a folder, or magmerge convert MODEL FOLDER",
        )
    checkpoint = open_checkpoint(folder)
    faults = [fault for check in header_checks(checkpoint) for fault in check.faults]
    if not any((folder / name).is_file() for name in VOCABULARIES):
        remedy = "merge again with a base that has one, or with --donor"
        faults.append(Fault(f"{folder} has no tokenizer, and a GGUF file holds one", remedy))
    code = sorted(path.name for path in folder.rglob("*.py"))
    if code and not allow_code:
        remedy = "add --allow-code (allow_code=True), or remove it"
        faults.append(Fault(f"{folder} holds code ({', '.join(code[:3])}): {CODE}", remedy))
    if faults:
        raise StructureError(faults)
    return checkpoint


def _sound(staged: Path, program: Path, template: str | None, kind: int | None) -> GgufHeader:
    """The header of what the converter wrote; OutputError where it is not what was asked for."""
    if not staged.is_file() or not staged.stat().st_size:
        raise OutputError(
            "the converter ended without an error, and wrote nothing", source=program, remedy=NEWEST
        )
    try:
        header = read_gguf_header(staged)
    except MagmergeError as error:
        raise OutputError(
            f"what the converter wrote is {error.problem}", source=program, remedy=NEWEST
        ) from error
    problems = list(_problems(header.facts, template, kind))
    if not header.tensors:
        problems.append("it holds no tensors")
    if problems:
        raise OutputError(
            f"what the converter wrote is not the model: {'; '.join(problems)}",
            source=program,
            remedy=NEWEST,
        )
    return header


def _problems(facts: Mapping[str, Any], template: str | None, kind: int | None) -> list[str]:
    """What is wrong with what a file says of its model."""
    problems = []
    if TOKENS not in facts:
        problems.append("it holds no tokens")
    if template is not None and facts.get(TEMPLATE) != template:
        had = "another chat template" if TEMPLATE in facts else "no chat template"
        problems.append(f"it holds {had}")
    if kind is not None and facts.get(TYPE, kind) != kind:
        problems.append(f"its format is number {facts[TYPE]}, not {kind}")
    return problems


def _note_missing(header: GgufHeader, checkpoint: Checkpoint) -> None:
    """Warn where the file holds fewer values than the model: of one that sees, its eyes are not in
    it.
    """
    own = [name for name in checkpoint.specs if name not in checkpoint.ties]
    shapes = [checkpoint.specs[name].shape for name in own]
    whole = sum(math.prod(shape) for shape in shapes)
    held = sum(math.prod(tensor.shape) for tensor in header.tensors)
    if held < 0.99 * whole:
        warn([
            f"the GGUF file holds {held:,} of the model's {whole:,} values: the converter writes "
            "what its language model has; a vision tower is a file of its own (--mmproj)"
        ])  # fmt: skip
