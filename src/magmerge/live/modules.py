"""From what a user names to a live torch module."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magmerge.checkpoints.kinds import read_config
from magmerge.core.errors import CheckpointError, ParameterError, UnknownNameError, suggestion
from magmerge.core.extras import needed

FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError)
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")


def bare_model(
    source: str | Path | nn.Module,
    *,
    model_class: str | None = None,
    build: str | None = None,
    loaded: bool = False,
) -> nn.Module:
    """A module whose weights are still to come, or, if `loaded`, are those of the folder `source`.

    A folder's module is of the class of transformers that `model_class` or its config.json names,
    else AutoModel. `build` is the user's own "package.module:function", which returns the module;
    it is imported and called, as anything that the user names is. Remote code is never run.
    """
    if isinstance(source, nn.Module):
        return copy.deepcopy(source)
    if build is not None:
        return _call(build)
    folder = Path(source)
    with quiet_transformers() as transformers:
        kind = class_of(transformers, folder, model_class)
        if not loaded and not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
            return _configured(transformers, kind, folder)
        try:
            return kind.from_pretrained(  # type: ignore[no-any-return]
                folder, dtype=torch.float32, trust_remote_code=False
            )
        except FAILURES as error:
            raise _unloadable(folder, error) from error


def empty_model(source: Path, *, model_class: str | None, build: str | None) -> nn.Module:
    """A module whose parameters have no data, and whose buffers have."""
    what, instead = "running a model block by block", "leave out --offload (offload=)"
    with needed("accelerate", what, instead).init_empty_weights(include_buffers=False):
        if build is not None:
            return _call(build)
        with quiet_transformers() as transformers:
            model = _configured(transformers, class_of(transformers, source, model_class), source)
    # Each parameter was emptied by itself, those that are tied too.
    model.tie_weights()  # type: ignore[operator]
    return model


def _configured(transformers: Any, kind: Any, folder: Path) -> nn.Module:
    """A model of the class with the folder's configuration, and none of its weights."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        build = getattr(kind, "from_config", None) or kind._from_config
        return build(config)  # type: ignore[no-any-return]
    except FAILURES as error:
        raise _unloadable(folder, error) from error


def class_of(transformers: Any, folder: Path, model_class: str | None) -> Any:
    """The class that the user or the folder's config.json names, else AutoModel."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "there is no config.json, so it cannot be told what model these tensors are",
            source=folder,
            remedy="give a folder that transformers can load, a torch module (model=), or the "
            "function that builds the model (build=, --build package.module:function)",
        )
    name = model_class or next(iter(read_config(folder).get("architectures") or ()), "AutoModel")
    kind = getattr(transformers, str(name), None)
    if kind is not None and hasattr(kind, "from_pretrained"):
        return kind
    if model_class is None:
        return transformers.AutoModel
    raise UnknownNameError(
        f"transformers has no model class {name!r}",
        remedy=suggestion(str(name), [n for n in dir(transformers) if "Model" in n or "For" in n]),
    )


def _unloadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"transformers cannot load it: {(str(error).splitlines() or [type(error).__name__])[0]}",
        source=folder,
        remedy="see that from_pretrained loads this folder, or name its class "
        "(model_class=, --model-class)",
    )


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """transformers, imported, saying nothing on its own; MagmergeError if it is not installed."""
    instead = "give a torch module (model=)"
    transformers = needed("transformers", "running this model", instead)
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _call(build: str) -> nn.Module:
    """What the user's function returns; it is found as Python finds it from this folder."""
    path, colon, name = build.partition(":")
    if not (path and colon and name):
        raise ParameterError(
            f"build is {build!r}", remedy="write package.module:function, which takes no arguments"
        )
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        model = getattr(import_module(path), name)()
    except Exception as error:
        raise ParameterError(
            f"build={build}: {type(error).__name__}: {error}",
            remedy="name a function without arguments in a module that Python finds from here",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise ParameterError(
            f"build={build} returned a {type(model).__name__}", remedy="return a torch module"
        )
    return model
