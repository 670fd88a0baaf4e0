"""Libraries that only some kinds of data need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from magmerge.core.errors import MissingExtraError

EXTRAS = {"transformers": "models", "PIL.Image": "images", "PIL.ImageOps": "images"}
EXTRAS |= {"datasets": "data", "scipy.io": "suites", "huggingface_hub": "models"}
EXTRAS |= {"lm_eval": "lm-eval", "accelerate": "models", "matplotlib": "report"}
EXTRAS |= dict.fromkeys(("jinja2", "markupsafe"), "report")
EXTRAS |= {"optuna": "tune"}
EXTRAS |= dict.fromkeys(("gguf", "gguf.quants"), "gguf")
OTHERS = ("diffusers", "peft", "timm")
"""Libraries of models that no extra of magmerge's brings."""


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
    return module if module in OTHERS else f"'magmerge[{EXTRAS[module]}]'"
