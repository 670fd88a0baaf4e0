"""Libraries that only some kinds of data need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from magmerge.core.errors import MissingExtraError

EXTRAS = {"transformers": "models", "PIL.Image": "images", "PIL.ImageOps": "images"}
EXTRAS |= {"datasets": "data", "scipy.io": "suites", "huggingface_hub": "hub"}
EXTRAS |= {"lm_eval": "lm-eval", "accelerate": "models", "matplotlib": "report"}
EXTRAS |= dict.fromkeys(("jinja2", "markupsafe"), "report")
EXTRAS |= {"optuna": "tune", "pandas": "tables"}
EXTRAS |= dict.fromkeys(("pyarrow", "pyarrow.parquet"), "data")
EXTRAS |= dict.fromkeys(("gguf", "gguf.quants"), "gguf")
OTHERS = {"diffusers": "diffusers", "peft": "peft", "timm": "timm", "open_clip": "open_clip_torch"}
"""Libraries of models that no extra of magmerge's brings, and what installs them."""


def needed(module: str, what: str, instead: str = "") -> Any:
    """The library's module; MagmergeError that names the extra to install where it is missing.

    `instead` is what may be done without it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs {module.partition('.')[0]}",
            remedy=f"pip install {_package(module)}{instead and f', or {instead}'}",
        ) from error


def _package(module: str) -> str:
    return OTHERS.get(module) or f"'magmerge[{EXTRAS[module]}]'"
