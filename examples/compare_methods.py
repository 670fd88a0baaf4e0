"""Merge three experts by several methods, and see how the merged task vectors differ.

    .venv/bin/python examples/compare_methods.py

For each method: the size of its task vector over the mean size of the experts', and its cosine with
each of them, all over the matrices of the model.
"""

import math

from torch import Tensor

import magmerge
from magmerge.studies.demo.demo_tasks import ASSETS, base_folder

METHODS = ("average", "ties", "consensus_ta", "breadcrumbs", "sce", "iso_c", "tsv_m")
EXPERTS = ("reviews", "language", "spam")


def main() -> None:
    """One row for each method."""
    base = base_folder()
    origin = magmerge.open_checkpoint(base)
    experts = {name: ASSETS / "experts" / name for name in EXPERTS}

    def task_vector(method: str, models: dict, **params: object) -> dict[str, Tensor]:
        result = magmerge.merge(base=base, experts=models, method=method, params=params)
        names = [record.name for record in result.records if record.kind == "matrix"]
        state = result.state_dict()
        return {name: state[name] - origin.read(name) for name in names}

    own = [task_vector("passthrough", {name: path}) for name, path in experts.items()]
    size = sum(math.sqrt(inner(one, one)) for one in own) / len(own)
    print(f"{'method':14}{'size':>8}", *(f"{name:>10}" for name in experts))
    for method in METHODS:
        merged = task_vector(method, experts)
        length = math.sqrt(inner(merged, merged))
        cosines = [inner(merged, one) / length / math.sqrt(inner(one, one)) for one in own]
        print(f"{method:14}{length / size:8.2f}", *(f"{cosine:10.3f}" for cosine in cosines))


def inner(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The inner product of two task vectors, over all their tensors."""
    return sum(float((first[name].double() * second[name].double()).sum()) for name in first)


if __name__ == "__main__":
    main()
