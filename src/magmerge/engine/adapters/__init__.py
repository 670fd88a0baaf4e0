"""Adapters as results: of adapters alone, and of models or merges on a base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.engine.adapters.adapter_faults import faults, notes
    from magmerge.engine.adapters.adapter_result import AdapterResult, Extraction, result
    from magmerge.engine.adapters.extraction import bytes_of_truncation, run_extraction
    from magmerge.engine.adapters.module_merge import bytes_of_module, run_module
    from magmerge.engine.adapters.targets import mark_lost

__all__ = [
    "AdapterResult",
    "Extraction",
    "faults",
    "notes",
    "result",
    "bytes_of_module",
    "bytes_of_truncation",
    "mark_lost",
    "run_extraction",
    "run_module",
]

__getattr__ = front(
    __name__,
    {
        "AdapterResult": "adapter_result",
        "Extraction": "adapter_result",
        "faults": "adapter_faults",
        "notes": "adapter_faults",
        "result": "adapter_result",
        "bytes_of_module": "module_merge",
        "bytes_of_truncation": "extraction",
        "mark_lost": "targets",
        "run_extraction": "extraction",
        "run_module": "module_merge",
    },
)
