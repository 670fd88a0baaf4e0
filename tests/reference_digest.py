"""The digest of a safetensors file as the docs tell it, from its bytes alone."""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

LEAF = 128 * 1024


def reference_digest(file: Path) -> str:
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    entries = {k: v for k, v in header.pop("__metadata__", {}).items() if k != "format"}
    text = json.dumps(entries, sort_keys=True) if entries else ""
    for name, entry in sorted(header.items()):
        data = content[length:][slice(*entry["data_offsets"])]
        leaves = [blake3(data[at : at + LEAF]).digest() for at in range(0, len(data), LEAF)]
        root = blake3(b"".join(leaves)).hexdigest()
        text += "\n" + json.dumps([name, entry["dtype"], entry["shape"], root])
    return "blake3-tensors:" + blake3(text.encode()).hexdigest()
