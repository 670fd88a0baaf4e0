"""What a pass found, as bytes: so that a run that goes on after a kill need not measure again."""

from __future__ import annotations

import json

from safetensors import SafetensorError
from safetensors.torch import load, save

from magmerge.core.lazy import Tensor
from magmerge.core.types import Uncovered
from magmerge.engine.job import Findings

KINDS = ("gains", "deltas", "statistics")
TOLD = ("shares", "check", "verdict")


def packed(findings: Findings) -> bytes:
    """The findings as a safetensors file, what could not be measured in its header."""
    tensors = {
        f"{kind}:{name}": tensor.contiguous()
        for kind in KINDS
        for name, tensor in (getattr(findings, kind) or {}).items()
    }
    uncovered = json.dumps([layer._asdict() for layer in findings.uncovered])
    header = {"uncovered": uncovered, "measured": str(findings.gains is not None)}
    header |= {name: json.dumps(dict(getattr(findings, name))) for name in TOLD}
    content: bytes = save(tensors, header)
    return content


def unpacked(content: bytes) -> Findings | None:
    """The findings of such bytes; None where they are not what magmerge writes."""
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for key, tensor in load(content).items():
            kind, _, name = key.partition(":")
            kinds[kind][name] = tensor
        gains = kinds["gains"] if header["measured"] == "True" else None
        uncovered = tuple(Uncovered(**layer) for layer in json.loads(header["uncovered"]))
        told = {name: json.loads(header[name]) for name in TOLD}
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return None
    return Findings(gains, kinds["deltas"], kinds["statistics"], uncovered, **told)
