"""A written model, built, loaded and run once by the library that its config names.

Code that a checkpoint brings never runs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magmerge.checkpoints.adapters.formats.keys import CONFIG as ADAPTER
from magmerge.checkpoints.donor import OPEN_CLIP, OPEN_CLIP_CONFIG, part_folders
from magmerge.checkpoints.kinds import read_config, read_json
from magmerge.checkpoints.load_checks import Check
from magmerge.core.errors import Fault, MagmergeError, MissingExtraError, shortened
from magmerge.core.extras import needed
from magmerge.live.dummy_inputs import inputs_for
from magmerge.live.modules import class_of, quiet_transformers

ANEW = "compare the names and shapes with those of a folder that loads (magmerge diff)"
WITH_OWN_CODE = "its class is code of the checkpoint's own, which magmerge never runs"
WORDS = {
    "missing_keys": "are missing, and drawn at random",
    "unexpected_keys": "belong to nothing",
    "mismatched_keys": "have other shapes",
}
"""What transformers, diffusers and torch tell of a load."""


def load_trial(folder: Path) -> list[Check]:
    """Checks of a load: of each part of a pipeline, of an adapter on its base, or of a model."""
    parts = part_folders(folder) if folder.is_dir() else []
    if parts:
        models = [part for part in parts if (folder / part / "config.json").is_file()]
        return [check for part in models for check in _trial(folder / part, f"{part}: ")]
    return _trial(folder, "")


def _trial(folder: Path, part: str) -> list[Check]:
    load, run = f"{part}loads", f"{part}runs"
    try:
        with _quiet():
            model, told = _loaded(folder)
    except (MissingExtraError, _NotHere) as error:
        return [Check(load, seen=str(error).splitlines()[0], done=False)]
    except Exception as error:  # whatever a library raises is what its users meet
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        remedy = getattr(error, "remedy", None) or ANEW
        return [Check(load, (Fault(f"it is not loaded: {text}", remedy),))]
    faults = tuple(
        Fault(f"{len(names)} tensors {words}: {shortened(names)}", ANEW)
        for key, words in WORDS.items()
        for names in [sorted(map(_name, told.get(key) or ()))]
        if names
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    loaded = Check(load, faults, f"{type(model).__name__}, {count:,} parameters, no key missing")
    return [loaded, _run(model, run)]


def _name(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, tuple) else entry)


class _NotHere(Exception):  # noqa: N818 - no error: a reason
    """Why a load cannot be tried here."""


def _loaded(folder: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model and what its library says of the load, which builds it without weights first."""
    if (folder / ADAPTER).is_file():
        return _adapter(folder)
    config = read_config(folder) if folder.is_dir() else {}
    if "_class_name" in config:
        diffusers = needed("diffusers", "loading this model")
        kind = getattr(diffusers, str(config["_class_name"]), None)
        if kind is None or not hasattr(kind, "from_pretrained"):
            raise _NotHere(f"diffusers has no {config['_class_name']}")
        with torch.device("meta"):
            kind.from_config(kind.load_config(folder))
        return kind.from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)  # type: ignore[no-any-return]
    if "architecture" in config and ("pretrained_cfg" in config or "num_classes" in config):
        return _of_timm(folder, config)
    if "model_type" not in config and (folder / OPEN_CLIP_CONFIG).is_file():
        return _of_open_clip(folder)
    if "model_type" not in config:
        raise _NotHere("no config.json that names a library")
    return _of_transformers(folder, config)


def _of_transformers(
    folder: Path, config: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    with quiet_transformers() as transformers:
        if config["model_type"] not in transformers.CONFIG_MAPPING:
            unknown = f"transformers knows no {config['model_type']}"
            raise _NotHere(WITH_OWN_CODE if config.get("auto_map") else unknown)
        kind = class_of(transformers, folder, None)
        options = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            (getattr(kind, "from_config", None) or kind._from_config)(options)
        return kind.from_pretrained(  # type: ignore[no-any-return]
            folder, output_loading_info=True, trust_remote_code=False, dtype=torch.float32
        )


def _of_timm(folder: Path, config: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    from safetensors.torch import load_file

    timm = needed("timm", "loading this model")
    options = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    options |= dict(config.get("model_args") or {})
    model = timm.create_model(config["architecture"], pretrained=False, **options)
    file = folder / "model.safetensors"
    state = load_file(file) if file.is_file() else torch.load(
        folder / "pytorch_model.bin", weights_only=True
    )  # fmt: skip
    told = model.load_state_dict(state, strict=False)
    return model, told._asdict()


def _of_open_clip(folder: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    from safetensors.torch import load_file

    open_clip = needed("open_clip", "loading this model")
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    told = model.load_state_dict(load_file(folder / OPEN_CLIP), strict=False)
    return model, told._asdict()


def _adapter(folder: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """PEFT's adapter on its base, where that is a folder here."""
    content = read_json(folder / ADAPTER, "restore the adapter's configuration")
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not (Path(base) / "config.json").is_file():
        raise _NotHere(f"the adapter's base {base} is no folder here")
    peft = needed("peft", "loading this adapter")
    model, _ = _loaded(Path(base))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(model, folder)
    lost = [str(warning.message) for warning in said if "missing" in str(warning.message)]
    if lost:
        raise MagmergeError(lost[0].splitlines()[0], source=folder)
    return wrapped, {}


def _run(model: nn.Module, name: str) -> Check:
    """One forward pass with small dummy inputs: its outputs are finite."""
    inputs = inputs_for(model)
    if inputs is None:
        return Check(name, seen=f"no dummy inputs are known for {type(model).__name__}", done=False)
    try:
        with torch.no_grad(), _quiet():
            outputs = list(_tensors(model.float().eval()(**inputs)))
    except Exception as error:  # the dummies may be at fault
        text = str(error).splitlines()[0] if str(error) else ""
        return Check(
            name, seen=f"not with dummy inputs: {type(error).__name__}: {text}", done=False
        )
    odd = [
        tensor for tensor in outputs if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    fault = Fault(
        "a forward pass gives values that are not finite",
        "see that its inputs are sound: magmerge diff",
    )
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in outputs[:3])
    return Check(name, (fault,) if odd else (), f"one forward pass, outputs {shapes} are finite")


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
        return
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    for value in values if isinstance(outputs, Mapping | tuple | list) else ():
        yield from _tensors(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """What a library says while it loads is told by the checks."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
