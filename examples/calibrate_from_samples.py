"""Repair a merge that exists with a few unlabelled samples of each task, in Python.

    .venv/bin/python examples/calibrate_from_samples.py

The models and texts are those of the demo; put your own folders and files in their place.
"""

import tempfile
from pathlib import Path

import magmerge
from magmerge.studies.demo.demo_tasks import ASSETS, base_folder, load_samples


def main() -> None:
    """Merge, find sensitive layers, calibrate, look."""
    base = base_folder()
    experts = {name: ASSETS / "experts" / name for name in ("reviews", "language")}
    work = Path(tempfile.mkdtemp())
    magmerge.merge(base=base, experts=experts, method="average", out=work / "merged")

    texts = load_samples(8)
    generic = [text for some in texts.values() for text in some]
    found = magmerge.sensitivity(base=base, experts=experts, data=generic, mode="fast", alpha=5)
    print(f"most sensitive: {', '.join(found.sensitive)}")

    result = magmerge.calibrate(
        work / "merged",
        base=base,
        experts=experts,
        method="fsc",
        data={name: texts[name] for name in experts},  # lists of texts; files do as well
        sensitive=found.sensitive,
        out=work / "calibrated",
    )
    print(result)  # with the verdict: did it help, on rows that were kept aside?
    for layer in result.records[:3]:
        asked = ", ".join(f"{factor:.2f}" for factor in layer.factors[0].experts)
        print(f"{layer.name}: xi {layer.xi:.2f}; the experts ask for {asked}")
    print(f"see {result.path / 'report.html'}")


if __name__ == "__main__":
    main()
