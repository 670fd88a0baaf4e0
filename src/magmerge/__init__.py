"""magmerge merges fine-tuned neural networks, then calibrates the magnitude of the change.

The front door: `merge`, `calibrate`, `plan`, `convert`, `extract`, `inspect`, `diff`,
`sensitivity`, `evaluate`, `suite`, `named_suites`, `reproduce`, `plot`, `redraw`, `write_report`,
`catalog`, `demo`, `Recipe`, `open_checkpoint`, `method`, `calibrator`, `register_method`,
`register_calibrator`. Each name is loaded at its first use, so that importing magmerge does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from magmerge.version import __version__

if TYPE_CHECKING:
    from magmerge.catalogue import calibrator, catalog, method
    from magmerge.checkpoints import open_checkpoint
    from magmerge.converting import convert
    from magmerge.demonstration import demo
    from magmerge.documents import run
    from magmerge.engine.result import Result
    from magmerge.errors import MagmergeError, MagmergeWarning
    from magmerge.evaluation import evaluate
    from magmerge.figures import plot, redraw
    from magmerge.inspection import diff, inspect
    from magmerge.machine import Machine
    from magmerge.pipeline import calibrate, extract, merge, plan
    from magmerge.recipe import Recipe
    from magmerge.registry import register_calibrator, register_method
    from magmerge.report.writing import write_report
    from magmerge.reproduction import reproduce
    from magmerge.sensing import Sensitivity, sensitivity
    from magmerge.suites import named_suites, suite

_HOMES = {
    "MagmergeError": "errors",
    "MagmergeWarning": "errors",
    "Machine": "machine",
    "Recipe": "recipe",
    "run": "documents",
    "Result": "engine.result",
    "calibrate": "pipeline",
    "calibrator": "catalogue",
    "catalog": "catalogue",
    "convert": "converting",
    "demo": "demonstration",
    "diff": "inspection",
    "evaluate": "evaluation",
    "extract": "pipeline",
    "inspect": "inspection",
    "merge": "pipeline",
    "method": "catalogue",
    "named_suites": "suites",
    "open_checkpoint": "checkpoints",
    "plan": "pipeline",
    "plot": "figures",
    "redraw": "figures",
    "reproduce": "reproduction",
    "register_calibrator": "registry",
    "register_method": "registry",
    "Sensitivity": "sensing",
    "sensitivity": "sensing",
    "suite": "suites",
    "write_report": "report.writing",
}

__all__ = [
    "Machine",
    "MagmergeError",
    "MagmergeWarning",
    "Recipe",
    "Result",
    "Sensitivity",
    "__version__",
    "calibrate",
    "calibrator",
    "catalog",
    "convert",
    "demo",
    "diff",
    "evaluate",
    "extract",
    "inspect",
    "merge",
    "method",
    "named_suites",
    "open_checkpoint",
    "plan",
    "plot",
    "redraw",
    "reproduce",
    "run",
    "register_calibrator",
    "register_method",
    "sensitivity",
    "suite",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'magmerge' has no attribute {name!r}")
    value = getattr(import_module(f"magmerge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
