"""Make a smaller and a larger model of the blocks of others, and load the results.

    .venv/bin/python examples/stack_blocks.py

The models are those of the demo; put your own folders in their place.
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

import magmerge
from magmerge.studies.demo.demo_tasks import ASSETS, base_folder


def main() -> None:
    """Leave blocks out of a merge of two experts, and stack one expert on itself."""
    base, folder = str(base_folder()), Path(tempfile.mkdtemp())
    experts = {name: str(ASSETS / "experts" / name) for name in ("reviews", "language")}
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer("Merging keeps what both have learnt.", return_tensors="pt")

    smaller = magmerge.Recipe(
        base=base,
        experts=experts,
        method="task_arithmetic",
        params={"lambda": 0.5},
        slices=[
            {"layers": {"base": [0, 3], "reviews": [0, 3], "language": [0, 3]}},
            {"layers": {"base": [5, 6], "reviews": [5, 6]}},
        ],
    )
    larger = magmerge.Recipe(
        base=base,
        experts={"reviews": experts["reviews"]},
        method="passthrough",
        slices=[{"layers": {"reviews": [0, 4]}}, {"layers": {"reviews": [2, 6]}}],
    )
    for name, recipe in {"smaller": smaller, "larger": larger}.items():
        result = magmerge.run(recipe, folder / name)
        model = AutoModel.from_pretrained(folder / name)
        with torch.inference_mode():
            features = model(**inputs).last_hidden_state
        print(*result.plan.blocks)
        print(f"{name}: {model.config.num_hidden_layers} blocks, features {tuple(features.shape)}")


if __name__ == "__main__":
    main()
