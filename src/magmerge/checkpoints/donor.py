"""What makes tensors a model: config, tokenizer and generation files, taken from a stated donor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magmerge import dtypes
from magmerge.errors import CheckpointError, OutputError

SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"})
LEFT_OUT = frozenset({"magmerge.json", "adapter_config.json", "trainer_state.json"})
MODULES = "modules.json"
MODEL, DIFFUSERS = "model.safetensors", "diffusion_pytorch_model.safetensors"
DTYPE_KEYS = ("dtype", "torch_dtype")


def companion_files(folder: Path | None) -> dict[str, Path]:
    """The files of a model folder that are no weights, by their path within it.

    A sentence encoder's modules.json names subfolders; those that lie inside are taken too. Code
    (.py) is never copied.
    """
    if folder is None:
        return {}
    found = {path.name: path for path in sorted(folder.iterdir()) if _is_companion(path)}
    for sub in _module_folders(folder):
        for path in sorted((folder / sub).iterdir()):
            if _is_companion(path):
                found[f"{sub}/{path.name}"] = path
    return found


def read_companions(files: dict[str, Path], dtype: str | None) -> dict[str, bytes]:
    """Their contents; config.json says the output's dtype where a new one was asked for."""
    contents = {}
    for name, path in files.items():
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"cannot be read: {error.strerror}", source=path, remedy="check its permissions"
            ) from error
    if dtype is not None and "config.json" in contents:
        config = _parsed(contents["config.json"], files["config.json"])
        spoken = {key: dtypes.torch_name(dtype) for key in DTYPE_KEYS if key in config}
        contents["config.json"] = (json.dumps({**config, **spoken}, indent=2) + "\n").encode()
    return contents


def weights_file(folder: Path | None) -> str:
    """The name under which the library of a model's config.json looks for its weights.

    diffusers writes its classes' names as `_class_name`, and loads nothing that is named otherwise.
    """
    path = None if folder is None else folder / "config.json"
    if path is None or not path.is_file():
        return MODEL
    return DIFFUSERS if "_class_name" in _parsed(path.read_bytes(), path) else MODEL


def check_donor(donor: Path | None, layout: Path | None) -> None:
    """OutputError if the donor's config describes another architecture than the model's own."""
    paths = [folder / "config.json" for folder in (donor, layout) if folder is not None]
    if len(paths) < 2 or donor == layout or not all(path.is_file() for path in paths):
        return
    own, other = (_parsed(path.read_bytes(), path) for path in reversed(paths))
    for key in ("model_type", "architectures"):
        if key in own and key in other and own[key] != other[key]:
            raise OutputError(
                f"its config.json says {key} {other[key]!r}, but the model's says {own[key]!r}",
                source=donor,
                remedy="name a donor of the same architecture",
            )


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", source=path, remedy="restore the model's config.json"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            "is no JSON object", source=path, remedy="restore the model's config.json"
        )
    return config


def _is_companion(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix in SUFFIXES
        and path.name not in LEFT_OUT
        and not path.name.endswith(".index.json")
        and not path.name.startswith(".")
    )


def _module_folders(folder: Path) -> list[str]:
    path = folder / MODULES
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = [entry.get("path", "") for entry in entries]
    except (ValueError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", source=path, remedy="restore or remove this file"
        ) from error
    # A name with a separator could lead out of the folder.
    return [n for n in names if n and n == Path(n).name and n != ".." and (folder / n).is_dir()]
