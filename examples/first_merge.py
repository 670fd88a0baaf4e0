"""Merge two experts of one base from Python, look at what was done, and load the result.

    .venv/bin/python examples/first_merge.py

The models are those of the demo; put your own folders in their place.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import magmerge
from magmerge.studies.demo.demo_tasks import ASSETS, base_folder


def main() -> None:
    """Plan, merge, look, load."""
    base = base_folder()
    experts = {name: ASSETS / "experts" / name for name in ("reviews", "language")}
    out = Path(tempfile.mkdtemp()) / "merged"

    plan = magmerge.plan(base=base, experts=experts, method="ties", calibrate="wsc", out=out)
    print(f"{len(plan.steps)} tensors, {plan.disk / 1e6:.0f} MB")

    result = magmerge.merge(base=base, experts=experts, method="ties", calibrate="wsc", out=out)
    layer = max(result.records, key=lambda record: record.xi)
    print(f"largest factor: {layer.xi:.2f} at {layer.name}")

    model, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with torch.inference_mode():
        inputs = tokenizer("Merging keeps what both have learnt.", return_tensors="pt")
        print(f"features: {tuple(model(**inputs).last_hidden_state.shape)}")


if __name__ == "__main__":
    main()
