"""Pipelines of diffusers: a folder of models, merged part by part into such a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import CheckpointError, MagmergeError, OutputError, StructureError
from tests.conftest import CommandLine, Shapes, State, random_state, tuned

UNET: Shapes = {"conv_in.weight": (4, 2, 3, 3), "mid_block.attn.weight": (6, 6), "scale": ()}
VAE: Shapes = {"encoder.weight": (5, 4), "decoder.weight": (4, 5)}
TEXT: Shapes = {"text_model.embeddings.token_embedding.weight": (9, 4), "fc1.weight": (6, 4)}
PARTS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
DIFFUSERS = "diffusion_pytorch_model"


def file_of(part: str, variant: str = "") -> str:
    stem = "model" if part.startswith("text") else DIFFUSERS
    return f"{stem}{variant}.safetensors"


def write(folder: Path, states: dict[str, State], variant: str = "") -> Path:
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "scheduler": ["a", "b"]}
    index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"steps": 10}')
    for part, state in states.items():
        own = part.startswith("text")
        index[part] = ["transformers" if own else "diffusers", "Class"]
        (folder / part).mkdir()
        config: dict[str, Any] = {"_class_name": "Class"}
        if own:
            config = {"model_type": "clip_text_model", "dtype": "float32"}
            config |= {"vocab_size": 9, "hidden_size": 4}
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file(state, folder / part / file_of(part, variant))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def states() -> list[dict[str, State]]:
    base = {part: random_state(number, PARTS[part]) for number, part in enumerate(PARTS)}
    tunes = [{part: tuned(state, seed) for part, state in base.items()} for seed in (1, 2)]
    return [base, *tunes]


@pytest.fixture
def pipes(states: list[dict[str, State]], tmp_path: Path) -> list[Path]:
    return [write(tmp_path / name, own) for name, own in zip("BAC", states, strict=True)]


def merge(pipes: list[Path], out: Path, **more: Any) -> Path:
    more = {"method": "average", **more}
    path = magmerge.merge(base=pipes[0], experts=pipes[1:], out=out, **more).path
    assert path is not None
    return path


def stored(folder: Path, part: str) -> State:
    return load_file(folder / part / file_of(part))


def mean(states: list[dict[str, State]], part: str) -> State:
    """The plain average of the experts, in float64."""
    return {
        name: (states[1][part][name].double() + states[2][part][name].double()) / 2
        for name in states[0][part]
    }


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_pipeline_is_merged_part_by_part(
    pipes: list[Path], states: list[dict[str, State]], tmp_path: Path
) -> None:
    out = merge(pipes, tmp_path / "out")
    assert files(out) == files(pipes[0]) | {"README.md", "magmerge.json", "magmerge.yaml"}
    for part in PARTS:
        for name, tensor in mean(states, part).items():
            torch.testing.assert_close(stored(out, part)[name].double(), tensor)
    record = json.loads((out / "magmerge.json").read_text())
    assert {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= set(
        record["inputs"][0]["files"]
    )
    # What magmerge wrote may be replaced, and the record's own recipe makes it again.
    again = magmerge.run(out / "magmerge.yaml", tmp_path / "again").path
    assert again is not None
    assert stored(again, "vae")["encoder.weight"].equal(stored(out, "vae")["encoder.weight"])
    merge(pipes, out, overwrite=True)


def test_variants_shards_and_formats(
    pipes: list[Path], states: list[dict[str, State]], tmp_path: Path
) -> None:
    half = [
        {part: {n: t.half() for n, t in state.items()} for part, state in own.items()}
        for own in states
    ]
    others = [write(tmp_path / f"h{i}", own, ".fp16") for i, own in enumerate(half)]
    out = merge(others, tmp_path / "out", shard_size=150)
    index = json.loads((out / "unet" / f"{DIFFUSERS}.safetensors.index.json").read_text())
    assert all("/" not in name for name in index["weight_map"].values())
    read = magmerge.open_checkpoint(out)
    assert set(read.specs) == {f"{part}.{name}" for part in PARTS for name in PARTS[part]}
    expected = mean(half, "unet")["conv_in.weight"]
    torch.testing.assert_close(read.read("unet.conv_in.weight"), expected.half())
    # The index of a variant is read as well.
    unet = others[0] / "unet"
    shutil.rmtree(unet)
    shutil.copytree(out / "unet", unet)
    plain = unet / f"{DIFFUSERS}.safetensors.index.json"
    plain.rename(unet / f"{DIFFUSERS}.safetensors.index.fp16.json")
    assert set(magmerge.open_checkpoint(others[0]).specs) == set(read.specs)
    # The format is told where a part's config tells it.
    wide = merge(pipes, tmp_path / "wide", dtype="bfloat16")
    assert json.loads((wide / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    assert stored(wide, "unet")["conv_in.weight"].dtype == torch.bfloat16


def test_parts_that_no_expert_changes_or_has_are_the_bases(
    states: list[dict[str, State]], tmp_path: Path
) -> None:
    base, first, second = states
    first["vae"], second["vae"] = base["vae"], base["vae"]
    del second["text_encoder"]
    pipes = [write(tmp_path / f"p{i}", own) for i, own in enumerate(states)]
    with pytest.warns(magmerge.MagmergeWarning, match="has unet, vae and no text_encoder"):
        result = magmerge.merge(
            base=pipes[0], experts=pipes[1:], method="average", out=tmp_path / "out"
        )
    actions = {step.spec.name: step.action for step in result.plan.steps}
    assert actions["vae.encoder.weight"] == "carry"
    assert actions["unet.scale"] == "merge"
    # Who lacks a part has no vote on it: the mean is that of the other alone.
    assert result.path is not None
    for name, tensor in stored(result.path, "text_encoder").items():
        torch.testing.assert_close(tensor, first["text_encoder"][name])
    for name, tensor in stored(result.path, "vae").items():
        assert tensor.equal(base["vae"][name])


def test_an_expert_may_be_one_part(
    pipes: list[Path], states: list[dict[str, State]], tmp_path: Path
) -> None:
    with pytest.warns(magmerge.MagmergeWarning, match="taken as the pipeline's unet"):
        out = merge([pipes[0], pipes[1] / "unet", pipes[2]], tmp_path / "out")
    torch.testing.assert_close(stored(out, "unet")["scale"].double(), mean(states, "unet")["scale"])
    only = states[2]["vae"]["encoder.weight"]
    torch.testing.assert_close(stored(out, "vae")["encoder.weight"], only)


def test_equal_pipelines_are_told(pipes: list[Path], tmp_path: Path) -> None:
    shutil.copytree(pipes[0], tmp_path / "copy")
    with pytest.raises(StructureError, match="copy is equal to the base"):
        merge([pipes[0], tmp_path / "copy"], tmp_path / "out")
    with pytest.raises(StructureError, match="copy is equal to the base"):
        merge([*pipes, tmp_path / "copy"], tmp_path / "out")


def test_a_merged_pipeline_is_calibrated(pipes: list[Path], tmp_path: Path) -> None:
    sphere = {"target": "sphere"}
    merged = merge(pipes, tmp_path / "merged")
    models = {"base": pipes[0], "experts": pipes[1:]}
    out = magmerge.calibrate(merged, **models, params=sphere, out=tmp_path / "out").path
    both = merge(pipes, tmp_path / "both", calibrate={"method": "wsc", "params": sphere})
    assert out is not None
    assert files(both) == files(out)
    name = "mid_block.attn.weight"
    assert not stored(out, "unet")[name].equal(stored(merged, "unet")[name])
    torch.testing.assert_close(stored(out, "unet")[name], stored(both, "unet")[name])


def test_filters_know_the_parts(
    pipes: list[Path], states: list[dict[str, State]], tmp_path: Path
) -> None:
    shares = [{"filter": "vae", "value": 0}, {"value": 0.5}]
    out = merge(pipes, tmp_path / "out", method="task_arithmetic", params={"lambda": shares})
    assert stored(out, "vae")["encoder.weight"].equal(states[0]["vae"]["encoder.weight"])


def test_one_file_is_refused_and_the_remedy_holds(
    pipes: list[Path], magmerge_cli: CommandLine, tmp_path: Path
) -> None:
    flags = ["--base", pipes[0], "--expert", pipes[1], "--expert", pipes[2]]
    told = magmerge_cli("merge", *flags, tmp_path / "out.safetensors")
    assert told.code == 1
    assert "a pipeline is a folder" in told.message
    parts = ["--base", pipes[0] / "unet", "--expert", pipes[1] / "unet"]
    assert "BASE/unet" in told.message
    assert magmerge_cli("merge", *parts, tmp_path / "out.safetensors").code == 0
    assert magmerge_cli("merge", *flags, tmp_path / "out").code == 0


def test_what_is_no_part_is_refused(pipes: list[Path], tmp_path: Path) -> None:
    save_file(random_state(3, {"a.weight": (2, 2)}), tmp_path / "lone.safetensors")
    with pytest.raises(CheckpointError, match="none of its parts") as told:
        merge([pipes[0], tmp_path / "lone.safetensors"], tmp_path / "out")
    assert "save_pretrained" in str(told.value.remedy)


def test_of_parts_that_are_alike_the_folder_tells(
    states: list[dict[str, State]], tmp_path: Path
) -> None:
    states[0]["text_encoder_2"] = tuned(states[0]["text_encoder"], 7)
    base, expert = write(tmp_path / "base", states[0]), write(tmp_path / "expert", states[1])
    moved = shutil.copytree(expert / "text_encoder", tmp_path / "mine")
    with pytest.raises(CheckpointError, match="text_encoder or text_encoder_2") as told:
        merge([base, moved], tmp_path / "out")
    assert "such as text_encoder" in str(told.value.remedy)
    with pytest.warns(magmerge.MagmergeWarning, match="taken as the pipeline's text_encoder$"):
        merge([base, expert / "text_encoder"], tmp_path / "out")


def test_a_part_without_its_weights_is_told(pipes: list[Path], tmp_path: Path) -> None:
    (pipes[1] / "vae" / file_of("vae")).unlink()
    with pytest.raises(CheckpointError, match=r"vae has a config\.json and no weights"):
        merge(pipes, tmp_path / "out")


@pytest.mark.parametrize("name", ["../vae", "/etc", "vae/..", ".", "", "a b", "unet\0"])
def test_hostile_names_of_parts_lead_nowhere(pipes: list[Path], tmp_path: Path, name: str) -> None:
    index = json.loads((pipes[0] / "model_index.json").read_text())
    (pipes[0] / "model_index.json").write_text(json.dumps({**index, name: ["a", "b"]}))
    with pytest.raises(StructureError, match="there is no such folder"):
        merge(pipes, tmp_path / "out")
    assert files(merge(pipes, tmp_path / "out", force=True)) >= files(pipes[0])


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "null", '"unet"', "[" * 100_000])
def test_a_broken_index_is_one_clear_message(pipes: list[Path], tmp_path: Path, text: str) -> None:
    (pipes[0] / "model_index.json").write_text(text)
    with pytest.raises(MagmergeError, match=r"model_index\.json"):
        merge(pipes, tmp_path / "out")


def test_a_donor_is_a_pipeline_of_these_parts(pipes: list[Path], tmp_path: Path) -> None:
    (pipes[2] / "scheduler" / "scheduler_config.json").write_text('{"steps": 50}')
    out = merge(pipes, tmp_path / "out", donor=pipes[2])
    assert "50" in (out / "scheduler" / "scheduler_config.json").read_text()
    with pytest.raises(OutputError, match="no pipeline, and what is written is one"):
        merge(pipes, tmp_path / "other", donor=pipes[2] / "unet")
    (pipes[2] / "unet" / "config.json").write_text('{"_class_name": "Other"}')
    with pytest.raises(OutputError, match="says _class_name 'Other'"):
        merge(pipes, tmp_path / "other", donor=pipes[2])


def test_files_beside_the_parts_are_told(pipes: list[Path], tmp_path: Path) -> None:
    shutil.copy(pipes[0] / "unet" / file_of("unet"), pipes[0] / "v1-5.safetensors")
    with pytest.warns(magmerge.MagmergeWarning, match=r"beside its parts lies v1-5\.safetensors"):
        merge(pipes, tmp_path / "out")


def test_an_adapter_on_a_pipeline_is_one_file_in_diffusers_names(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("base", "a")]
    for seed, folder in enumerate(folders):
        _tiny(folder, seed)
    models: dict[str, Any] = {"base": folders[0], "model": folders[1], "rank": 2}
    with pytest.raises(StructureError, match="is on one model") as told:
        magmerge.extract(**models, out=tmp_path / "out")
    assert "--format diffusers" in str(told.value.remedy)
    with pytest.warns(magmerge.MagmergeWarning, match="not in the adapter"):
        magmerge.extract(**models, naming="diffusers", out=tmp_path / "out.safetensors")
    loaded = _loaded(folders[0])
    loaded.load_lora_weights(tmp_path / "out.safetensors")
    assert loaded.unet.peft_config
    assert loaded.text_encoder.peft_config
    part = {role: folder / "vae" for role, folder in zip(("base", "model"), folders, strict=True)}
    with pytest.warns(magmerge.MagmergeWarning, match="not in the adapter"):
        magmerge.extract(**part, rank=2, out=tmp_path / "part")


def test_a_pipeline_is_converted_under_its_own_names(pipes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MagmergeError, match="a pipeline keeps its names"):
        magmerge.convert(pipes[0], tmp_path / "out", naming="open_clip")
    magmerge.convert(pipes[0], tmp_path / "out", dtype="bfloat16")
    assert stored(tmp_path / "out", "vae")["encoder.weight"].dtype == torch.bfloat16


def _lora(pipe: Any, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    states = {}
    for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        model = getattr(pipe, part)
        model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        state = get_peft_model_state_dict(model)
        states[part] = convert_state_dict_to_diffusers(state)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"]
    )


def _tiny(folder: Path, seed: int) -> Any:
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    config = CLIPTextConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    parts = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(config)}
    empty = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    pipe = diffusers.StableDiffusionPipeline(
        **parts, **empty, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return pipe


def _loaded(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    empty = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    return DiffusionPipeline.from_pretrained(folder, **empty)


def test_diffusers_loads_the_result_and_a_lora_is_an_expert(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folders = [tmp_path / name for name in ("base", "a", "b")]
    pipes = [_tiny(folder, seed) for seed, folder in enumerate(folders)]
    out = merge(folders, tmp_path / "out")
    for part in ("unet", "vae", "text_encoder"):
        first, second = (getattr(pipe, part).state_dict() for pipe in pipes[1:])
        for name, tensor in getattr(_loaded(out), part).state_dict().items():
            if tensor.is_floating_point():
                expected = (first[name].double() + second[name].double()) / 2
                torch.testing.assert_close(tensor.double(), expected)
    _lora(pipes[0], tmp_path / "lora")
    fused = _loaded(folders[0])
    fused.load_lora_weights(tmp_path / "lora")
    fused.fuse_lora()
    fused.unload_lora_weights()
    baked = merge([folders[0], tmp_path / "lora"], tmp_path / "baked")
    mine = _loaded(baked)
    changed = 0
    for part in ("unet", "text_encoder"):
        before = getattr(_loaded(folders[0]), part).state_dict()
        own = getattr(mine, part).state_dict()
        for name, tensor in getattr(fused, part).state_dict().items():
            torch.testing.assert_close(own[name], tensor, atol=1e-5, rtol=1e-5)
            changed += not torch.equal(before[name], tensor)
    assert changed == 18
