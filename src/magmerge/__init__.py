"""magmerge merges fine-tuned neural networks, then calibrates the magnitude of the change.

The front door: `merge`, `calibrate`, `plan`, `convert`, `extract`, `inspect`, `diff`, `verify`,
`sensitivity`, `evaluate`, `suite`, `named_suites`, `reproduce`, `plot`, `redraw`, `write_report`,
`catalog`, `demo`, `Recipe`, `open_checkpoint`, `method`, `calibrator`, `register_method`,
`register_calibrator`, `run`, `read_recipes`, `plan_recipe`, `Machine`, `Live`. Each name is loaded
at its first use, so that importing magmerge does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from magmerge.core.version import __version__

if TYPE_CHECKING:
    from magmerge.checkpoints import open_checkpoint
    from magmerge.core.catalogue import calibrator, catalog, method
    from magmerge.core.errors import MagmergeError, MagmergeWarning
    from magmerge.core.machine import Machine
    from magmerge.core.recipe import Recipe
    from magmerge.core.registry import register_calibrator, register_method
    from magmerge.engine.inspection import diff, inspect
    from magmerge.engine.job import Live
    from magmerge.engine.result import Result
    from magmerge.evaluation import evaluate
    from magmerge.evaluation.sensitivity import Sensitivity, sensitivity
    from magmerge.evaluation.suites import named_suites, suite
    from magmerge.pipeline.convert import convert
    from magmerge.pipeline.documents import read_recipes, run
    from magmerge.pipeline.merge import calibrate, extract, merge, plan
    from magmerge.pipeline.recipe_plan import plan_recipe
    from magmerge.pipeline.verify import verify
    from magmerge.report.html_file import write_report
    from magmerge.studies.demo import demo
    from magmerge.studies.figures import plot, redraw
    from magmerge.studies.reproduction import reproduce

_HOMES = {
    "MagmergeError": "core.errors",
    "MagmergeWarning": "core.errors",
    "Live": "engine.job",
    "Machine": "core.machine",
    "Recipe": "core.recipe",
    "run": "pipeline.documents",
    "Result": "engine.result",
    "calibrate": "pipeline.merge",
    "calibrator": "core.catalogue",
    "catalog": "core.catalogue",
    "convert": "pipeline.convert",
    "demo": "studies.demo",
    "diff": "engine.inspection",
    "evaluate": "evaluation",
    "extract": "pipeline.merge",
    "inspect": "engine.inspection",
    "merge": "pipeline.merge",
    "method": "core.catalogue",
    "named_suites": "evaluation.suites",
    "open_checkpoint": "checkpoints",
    "plan": "pipeline.merge",
    "plan_recipe": "pipeline.recipe_plan",
    "plot": "studies.figures",
    "read_recipes": "pipeline.documents",
    "redraw": "studies.figures",
    "reproduce": "studies.reproduction",
    "register_calibrator": "core.registry",
    "register_method": "core.registry",
    "Sensitivity": "evaluation.sensitivity",
    "sensitivity": "evaluation.sensitivity",
    "suite": "evaluation.suites",
    "verify": "pipeline.verify",
    "write_report": "report.html_file",
}

__all__ = [
    "Live",
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
    "plan_recipe",
    "plot",
    "read_recipes",
    "redraw",
    "reproduce",
    "run",
    "register_calibrator",
    "register_method",
    "sensitivity",
    "suite",
    "verify",
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
