"""Zero-shot heads: what a CLIP's text encoder makes of a task's prompts, built once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.digests import DigestMemory, default_path
from magmerge.checkpoints.kinds import read_config
from magmerge.core.errors import CheckpointError, ParameterError
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.core.whole_file import replace_whole
from magmerge.data.tokens import FILES, open_tokenizer, token_limit
from magmerge.evaluation.suites.definitions import ImageTask
from magmerge.live.modules import quiet_transformers

VERSION = 1
"""Of how heads are made; a head of another version is not taken from the cache."""
BATCH = 64
SCALE, PROJECTION = "logit_scale", "visual_projection.weight"
ENCODER = ("config.json", *FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files beside the weights that decide what the encoder makes of a prompt."""


class ZeroShot:
    """Makes the heads of one CLIP; its text encoder is loaded when a head is not in the cache.

    `cache` is a folder; default: `heads` in the user's cache folder of magmerge. With `projected`
    the base's visual projection goes into the head, which then takes the pooled output of a bare
    vision encoder.
    """

    def __init__(
        self,
        base: Path,
        machine: Machine | None = None,
        *,
        projected: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.base, self._projected, self._machine = base, projected, machine or Machine()
        digests = default_path()
        self._cache = cache or (None if digests is None else digests.with_name("heads"))
        self.checkpoint = _open_clip(base)
        self.built = 0

    def head(self, task: ImageTask) -> dict[str, Tensor]:
        """The task's head as a head file holds it: `weight` [classes, features]."""
        place = None
        if self._cache is not None:
            # The name is a digest of the encoder's files, the classes and the prompts.
            parts = [VERSION, self._projected, self._digests, task.classes, task.templates]
            key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            place = self._cache / f"{key}.safetensors"
            known = _head_at(place, len(task.classes))
            if known is not None:
                return known
        weight = self._encoder.head(task.classes, task.templates, self._machine)
        self.built += 1
        if self._projected:
            weight = weight @ self.checkpoint.read(PROJECTION).float()
        head = {"weight": weight.contiguous()}
        if place is not None:
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                replace_whole(place, save(head))
        return head

    @cached_property
    def _encoder(self) -> _TextEncoder:
        return _TextEncoder(self.base)

    @cached_property
    def _digests(self) -> list[list[str]]:
        memory = DigestMemory()
        beside = [self.base / name for name in ENCODER if (self.base / name).is_file()]
        files = [*self.checkpoint.files, *beside]
        digests = [[file.name, memory.digest(file)] for file in files]
        memory.save()
        return digests


def _head_at(path: Path, classes: int) -> dict[str, Tensor] | None:
    """A head as it was kept; None where there is none, or it is spoilt."""
    try:
        head: dict[str, Tensor] = load_file(path)
        weight = head["weight"]
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    sound = weight.dim() == 2 and len(weight) == classes and bool(weight.isfinite().all())
    return head if sound else None


def _open_clip(base: Path) -> Checkpoint:
    """The checkpoint of a whole CLIP in transformers' layout; an error that says what it lacks."""
    checkpoint = open_checkpoint(base)
    config = read_config(base)
    missing = [name for name in (SCALE, PROJECTION) if name not in checkpoint.specs]
    if config.get("model_type") != "clip" or missing:
        raise CheckpointError(
            f"it is no whole CLIP: it lacks {missing[0]}"
            if missing
            else f"it is no CLIP but a {config.get('model_type')}",
            source=base,
            remedy="give the folder of a CLIPModel, such as openai/clip-vit-base-patch32, with its "
            "tokenizer",
        )
    own = checkpoint.specs[PROJECTION].shape[0]
    said = (config.get("vision_config") or {}).get("projection_dim", 512)
    if own != said:
        raise ParameterError(
            f"vision_config.projection_dim is {said}, and the visual projection has {own} rows",
            source=base / "config.json",
            remedy=f"write {own} there and in text_config, so that a vision encoder alone can be "
            "built",
        )
    return checkpoint


class _TextEncoder:
    """The text half of a CLIP, in float32."""

    def __init__(self, base: Path) -> None:
        self._tokenizer = open_tokenizer(base, str(base))
        places = (read_config(base).get("text_config") or {}).get("max_position_embeddings", 77)
        self._limit = min(token_limit(None, self._tokenizer, base), places)
        self._scale = float(open_checkpoint(base).read(SCALE).double().exp())
        with quiet_transformers() as transformers:
            try:
                self._model, output = transformers.CLIPTextModelWithProjection.from_pretrained(
                    base, dtype=torch.float32, local_files_only=True, output_loading_info=True
                )
                if output["missing_keys"]:
                    raise ValueError(f"it lacks {min(output['missing_keys'])}")
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                problem = str(error).partition("\n")[0]
                raise CheckpointError(
                    f"its text encoder cannot be loaded: {problem}",
                    source=base,
                    remedy="give a folder that CLIPTextModelWithProjection.from_pretrained loads",
                ) from error
        self._model.eval()

    @torch.inference_mode()
    def head(
        self, classes: Sequence[str], templates: Sequence[str], machine: Machine
    ) -> Float[Tensor, "classes features"]:
        """Each class's mean normalised text embedding, normalised again, times the logit scale.

        The zero-shot classifier of CLIP (arXiv:2103.00020, section 3.1.4): for class c with
        prompts t, w_c = exp(s) * m_c / |m_c|, m_c = mean_t e(t, c) / |e(t, c)|.
        """
        prompts = [template.format(name) for name in classes for template in templates]
        output = []
        for start in range(0, len(prompts), BATCH):
            output.append(self._embeddings(prompts[start : start + BATCH]))
            if machine.progress is not None:
                machine.progress("encoding prompts", min(start + BATCH, len(prompts)), len(prompts))
        means = torch.cat(output).reshape(len(classes), len(templates), -1).mean(dim=1)
        weight: Tensor = self._scale * means / means.norm(dim=-1, keepdim=True)
        return weight.float().clone()

    def _embeddings(self, prompts: list[str]) -> Float[Tensor, "prompts features"]:
        """Normalised text embeddings, in float64."""
        inputs = self._tokenizer(
            prompts, padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        )
        output = self._model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        embeddings: Tensor = output.text_embeds.double()
        normalised: Tensor = embeddings / embeddings.norm(dim=-1, keepdim=True)
        return normalised
