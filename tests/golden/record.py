"""Record the golden digests anew, after a change of bits that is meant and named:

.venv/bin/python -m tests.golden.record
"""

from __future__ import annotations

import json
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.golden.cases import cases, digest, fingerprint

FILE = Path(__file__).parent / "digests.json"


def machine() -> str:
    """What the last bits of products and decompositions depend on: torch, processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    model = [told.get(key, "") for key in ("vendor_id", "cpu family", "model")]
    capability = torch.backends.cpu.get_cpu_capability()
    return " ".join([torch.__version__, capability, *(model if told else [platform.machine()])])


def main() -> None:
    """Run every case once and write digests and fingerprints."""
    known: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"digests": {}}
    torch.set_num_threads(1)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in cases().items():
            with tempfile.TemporaryDirectory() as folder:
                found[name] = case(Path(folder))
    digests = {name: digest(state) for name, state in found.items()}
    known["digests"] = {**known["digests"], machine(): digests}
    known["fingerprints"] = {name: fingerprint(state) for name, state in found.items()}
    FILE.write_text(json.dumps(known, indent=0) + "\n")


if __name__ == "__main__":
    main()
