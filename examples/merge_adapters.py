"""Merge LoRA adapters into one adapter without their base model, and load it with PEFT.

    .venv/bin/python examples/merge_adapters.py

The adapters are the demo's, of rank 16 on a sentence encoder; put your own folders or files in
their place.
"""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

import magmerge
from magmerge.studies.demo.demo_tasks import ASSETS, base_folder


def main() -> None:
    """Merge at several ranks, see what is cut off, and use the result."""
    experts = {name: ASSETS / "experts" / name for name in ("reviews", "language", "spam")}
    out = Path(tempfile.mkdtemp()) / "adapter"

    for rank in (8, 16, "exact"):
        result = magmerge.merge(experts=experts, method="average", calibrate="wsc", rank=rank)
        worst = max(module.error for module in result.modules)
        grown = sum(record.xi for record in result.records) / len(result.records)
        print(f"rank {rank}: at most {100 * worst:.0f} % of a module cut off, xi {grown:.2f}")

    result.save(out)
    base = base_folder()
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), out)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        inputs = tokenizer("Merging keeps what all have learnt.", return_tensors="pt")
        print(f"features: {tuple(model(**inputs).last_hidden_state.shape)}")


if __name__ == "__main__":
    main()
