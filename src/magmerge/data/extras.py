"""Libraries that only some kinds of data need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from magmerge.core.errors import MissingExtraError

EXTRAS = {"transformers": "models", "PIL.Image": "images", "PIL.ImageOps": "images"}
EXTRAS |= {"datasets": "data", "scipy.io": "suites", "huggingface_hub": "models"}
EXTRAS["lm_eval"] = "lm-eval"


def needed(module: str, what: str) -> Any:
    """The library's module; MagmergeError that names the extra to install where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs {module.partition('.')[0]}",
            remedy=f"pip install 'magmerge[{EXTRAS[module]}]'",
        ) from error
