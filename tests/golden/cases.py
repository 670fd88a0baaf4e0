"""What the golden digests are taken of: each case is a call of the front door on small models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import magmerge
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import State, random_state, tuned

SHAPES = {
    "embed_tokens.weight": (96, 40),
    "layers.0.attn.weight": (40, 40),
    "layers.0.mlp.weight": (88, 40),
    "layers.0.mlp.bias": (88,),
    "layers.1.attn.weight": (40, 40),
    "layers.1.down.weight": (40, 88),
    "layers.1.conv.weight": (32, 6, 3, 3),
    "layers.1.norm.weight": (40,),
    "lm_head.weight": (96, 40),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODULES = {
    "lora_unet_mid_block_attentions_0_proj_in": (40, 24),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (24, 24),
    "lora_unet_mid_block_resnets_0_conv1": (24, 8, 3, 3),
}
SENTENCES = ["yes no good bad", "very text one two", "a b c d e f", "three two one yes"]

Case = Callable[[Path], State]
"""Writes what it needs into a folder, and gives the tensors of its result."""


def cases() -> dict[str, Case]:
    """All cases by name."""
    return dict([*_merges(), *_calibrations(), *_adapters(), *_others(), *_measured()])


def count_for(name: str) -> int:
    """How many experts a method is given: three, or as many as it takes."""
    least, most = magmerge.method(name).experts
    return max(least, min(3, most or 3))


def models(dtype: torch.dtype, count: int) -> tuple[State, dict[str, State]]:
    """A base and experts near it, each with a tensor that is not merged."""
    base = random_state(0, SHAPES)
    found = {f"e{k}": tuned(base, k, size=0.05) for k in range(count)}
    cast = [
        {name: one.to(dtype) for name, one in state.items()} for state in (base, *found.values())
    ]
    for state in cast:
        state["position_ids"] = torch.arange(7)
    return cast[0], dict(zip(found, cast[1:], strict=True))


def digest(state: State) -> str:
    """Names, dtypes, shapes and bits of all tensors."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fingerprint(state: State) -> list[float]:
    """Numbers that tell results apart that differ by more than rounding: norms and projections."""
    generator = torch.Generator().manual_seed(7)
    numbers: list[float] = []
    for name in sorted(state):
        flat = state[name].double().reshape(-1)
        direction = torch.randn(len(flat), generator=generator, dtype=torch.float64)
        numbers += [float(flat.norm()), float(flat @ direction)]
    return [float(f"{number:.8g}") for number in numbers]


def _merges() -> Iterator[tuple[str, Case]]:
    names = [entry["name"] for entry in magmerge.catalog() if entry["kind"] == "method"]
    for dtype in DTYPES:
        for name in names:
            yield f"merge {name} {dtype}", _merge(dtype, name)
        for name in ("average", "ties", "dare", "tsv_m"):
            yield f"merge {name} wsc {dtype}", _merge(dtype, name, calibrate="wsc")
    sphere = {"method": "wsc", "params": {"target": "sphere", "granularity": "layer"}}
    yield "merge ties tensor", _merge("float32", "ties", params={"scope": "tensor"})
    yield "merge ties gate off", _merge("float32", "ties", calibrate="wsc", gate="off")
    yield "merge average sphere", _merge("float32", "average", calibrate=sphere)
    yield (
        "merge by layer",
        _merge(
            "float32",
            "task_arithmetic",
            params={"lambda": [{"filter": "*mlp*", "value": 0.5}, {"value": 0.2}]},
        ),
    )
    yield (
        "merge sensitive",
        _merge("float32", "iso_c", calibrate="wsc", sensitive=["layers.0.attn.weight"]),
    )
    yield "merge another dtype", _merge("float32", "average", dtype="float16")
    yield "merge ignoring", _merge("float32", "average", ignore=["lm_head.*"])
    yield "merge another seed", _merge("float32", "dare_ties", seed=3)


def _merge(stored: str, method: str, **arguments: object) -> Case:
    def run(_: Path) -> State:
        base, experts = models(DTYPES[stored], count_for(method))
        result = magmerge.merge(base=base, experts=experts, method=method, **arguments)
        return result.state_dict()

    return run


def _calibrations() -> Iterator[tuple[str, Case]]:
    def run(dtype: str) -> Case:
        def calibrate(_: Path) -> State:
            base, experts = models(DTYPES[dtype], 3)
            merged = magmerge.merge(base=base, experts=experts).state_dict()
            return magmerge.calibrate(merged, base=base, experts=experts).state_dict()

        return calibrate

    for dtype in DTYPES:
        yield f"calibrate wsc {dtype}", run(dtype)


def _adapters() -> Iterator[tuple[str, Case]]:
    names = [entry["name"] for entry in magmerge.catalog() if entry["kind"] == "method"]
    for name in names:
        yield f"adapters {name}", _adapter_merge(name)
    for rank in ("auto", 2):
        for name in ("average", "ties"):
            yield f"adapters {name} rank {rank}", _adapter_merge(name, rank=rank)
    yield "adapters exact", _adapter_merge("average", rank="exact")
    # A row of it asks for 21 times its length: recorded when no factor was bounded.
    yield "adapters wsc", _adapter_merge("average", calibrate="wsc", bound="off")
    yield "adapters to peft", _adapter_merge("average", naming="peft")
    yield "adapters into a base", _into_base


def _lora(folder: Path, count: int) -> dict[str, Path]:
    return {
        f"a{k}": write_adapter(folder / f"a{k}.safetensors", MODULES, seed=10 * k)
        for k in range(count)
    }


def _adapter_merge(method: str, **arguments: object) -> Case:
    def run(folder: Path) -> State:
        experts = _lora(folder, count_for(method))
        return magmerge.merge(experts=experts, method=method, **arguments).state_dict()

    return run


def _into_base(folder: Path) -> State:
    shapes = {
        "down_blocks.0.attentions.0.proj_in.weight": (40, 24),
        "down_blocks.0.resnets.0.conv1.weight": (24, 8, 3, 3),
    }
    modules = {name.removesuffix(".weight").replace(".", "_"): s for name, s in shapes.items()}
    experts = {
        f"a{k}": write_adapter(
            folder / f"b{k}.safetensors",
            {f"lora_unet_{name}": shape for name, shape in modules.items()},
            seed=10 * k,
        )
        for k in range(2)
    }
    base = {name: 100 * tensor for name, tensor in random_state(0, shapes).items()}
    return magmerge.merge(base=base, experts=experts, method="ties", calibrate="wsc").state_dict()


def _others() -> Iterator[tuple[str, Case]]:
    yield "extract rank 4", _extract(4)
    yield "extract auto", _extract("auto")
    yield "convert an adapter", _convert_adapter
    yield "convert a model", _convert_model


def _extract(rank: object) -> Case:
    def run(folder: Path) -> State:
        base, experts = models(torch.float32, 1)
        layers = {name: one for name, one in experts["e0"].items() if name.startswith("layers")}
        matrices = {name: one for name, one in layers.items() if one.ndim > 1}
        model = {**base, **matrices}
        magmerge.extract(base=base, model=model, rank=rank, out=folder / "out")
        return load_file(folder / "out" / "adapter_model.safetensors")

    return run


def _convert_adapter(folder: Path) -> State:
    source = _lora(folder, 1)["a0"]
    magmerge.convert(source, folder / "out.safetensors", naming="diffusers")
    return load_file(folder / "out.safetensors")


def _convert_model(folder: Path) -> State:
    base, _ = models(torch.float32, 1)
    torch.save({"model": base}, folder / "m.pt")
    magmerge.convert(folder / "m.pt", folder / "out.safetensors", dtype="bfloat16")
    return load_file(folder / "out.safetensors")


def _measured() -> Iterator[tuple[str, Case]]:
    for order in ("once", "forward"):
        yield f"merge fsc {order}", _with_samples(_plain("fsc"), order=order)
    yield "merge dsc", _with_samples(_plain("dsc"))
    yield "merge fsc l1", _with_samples(_plain("fsc", norm="l1"))


def _plain(calibration: str, **params: object) -> dict[str, object]:
    """The paper's calibration, without a check on samples kept aside."""
    return {"method": calibration, "params": {"check": "off", **params}}


def _with_samples(calibrate: object, **arguments: object) -> Case:
    def run(folder: Path) -> State:
        from tests.evaluation.models import save_llama

        base = save_llama(folder / "base")
        origin = load_file(base / "model.safetensors")
        texts = folder / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
        experts = {}
        for k in range(2):
            experts[f"e{k}"] = folder / f"e{k}.safetensors"
            save_file(tuned(origin, k, size=0.02), experts[f"e{k}"])
        result = magmerge.merge(
            base=base, experts=experts, method="average", calibrate=calibrate, data=texts,
            samples=3, **arguments,
        )  # fmt: skip
        found: dict[str, Tensor] = result.state_dict()
        return found

    return run
