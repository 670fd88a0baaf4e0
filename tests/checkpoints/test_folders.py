"""Folders as programs leave them: what in them is the model, and what to do where nothing is."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.checkpoints import open_checkpoint
from magmerge.core.errors import CheckpointError
from tests.checkpoints.adapters.files import write_adapter
from tests.conftest import CommandLine, State, random_state, tuned
from tests.quick import examples

BASE = random_state(0)
NAMES = sorted(BASE)
HALF = len(NAMES) // 2


def shards(folder: Path, state: State, stem: str = "model", suffix: str = ".safetensors") -> Path:
    folder.mkdir()
    for number, names in enumerate((NAMES[:HALF], NAMES[HALF:]), start=1):
        part = {name: state[name] for name in names}
        file = folder / f"{stem}-{number:05d}-of-00002{suffix}"
        if suffix == ".safetensors":
            save_file(part, file)
        else:
            torch.save(part, file)
    return folder


@pytest.mark.parametrize(
    ("stem", "suffix"),
    [
        ("model", ".safetensors"),
        ("consolidated", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("diffusion_pytorch_model", ".safetensors"),
    ],
)
def test_shards_without_an_index_are_one_checkpoint(
    magmerge_cli: CommandLine, tmp_path: Path, stem: str, suffix: str
) -> None:
    save_file(BASE, tmp_path / "base.safetensors")
    expert = tuned(BASE, 1)
    folder = shards(tmp_path / "e", expert, stem, suffix)
    call = ["--base", tmp_path / "base.safetensors", "--expert", folder, "--set", "lambda=1"]
    done = magmerge_cli("merge", *call, tmp_path / "o.safetensors")
    assert done.code == 0, done.message
    assert "has no index: its 2 shards" in done.message
    merged = load_file(tmp_path / "o.safetensors")
    assert all(torch.allclose(merged[name], expert[name], atol=1e-6) for name in NAMES)


def test_missing_shards_are_named_and_fetching_them_helps(tmp_path: Path) -> None:
    folder = shards(tmp_path / "e", BASE)
    lost = folder / "model-00001-of-00002.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(CheckpointError, match=r"1 of its 2 shards are missing: model-00001-of-0"):
        open_checkpoint(folder)
    lost.write_bytes(content)
    assert set(open_checkpoint(folder).specs) == set(BASE)


def test_shards_of_two_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    folder = shards(tmp_path / "e", BASE)
    save_file(BASE, folder / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="shards of several checkpoints"):
        open_checkpoint(folder)
    # Beside safetensors files those of torch are the same model once more.
    (folder / "model-00001-of-00001.safetensors").unlink()
    torch.save(BASE, folder / "pytorch_model-00001-of-00001.bin")
    assert len(open_checkpoint(folder).files) == 2


def index(folder: Path, *more: str) -> Path:
    shards(folder, BASE)
    names = {name: f"model-0000{1 + (place >= HALF)}-of-00002.safetensors"
             for place, name in enumerate(NAMES)}  # fmt: skip
    names |= dict.fromkeys(more, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_tables_that_an_index_lists_and_no_shard_has_are_said(tmp_path: Path) -> None:
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = index(tmp_path / "e", table)
    with pytest.warns(magmerge.MagmergeWarning, match=r"inv_freq, which no shard holds"):
        result = magmerge.merge(base=tuned(BASE, 3), experts=[folder], params={"lambda": 1})
    assert set(result.state_dict()) == set(BASE)
    masks = index(tmp_path / "masks", "h.0.attn.bias", "h.0.attn.masked_bias")
    assert "h.0.attn.bias, h.0.attn.masked_bias" in open_checkpoint(masks).notes[0]
    with pytest.raises(CheckpointError, match=r"layers.0.attn.bias is listed but in no shard"):
        open_checkpoint(index(tmp_path / "bias", "layers.0.attn.bias"))
    folder = index(tmp_path / "lost", "layers.0.attn.lost")
    with pytest.raises(CheckpointError, match=r"layers.0.attn.lost is listed but in no shard"):
        open_checkpoint(folder)


def test_the_last_checkpoint_of_a_training_is_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (9, 100, 20):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        state = {name: tensor + step for name, tensor in BASE.items()}
        save_file(state, run / f"checkpoint-{step}" / "model.safetensors")
    (run / "checkpoint-best").mkdir()
    with pytest.warns(magmerge.MagmergeWarning, match="training's folder: checkpoint-100 is taken"):
        result = magmerge.merge(base=BASE, experts=[run], params={"lambda": 1})
    name = NAMES[0]
    assert torch.allclose(result.state_dict()[name], BASE[name] + 100, atol=1e-4)
    # What was saved at the end is the model.
    save_file(BASE, run / "model.safetensors")
    assert torch.equal(open_checkpoint(run).read(name), BASE[name])
    assert not open_checkpoint(run).notes


def test_the_last_adapter_of_a_training_is_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"
    base = {"model.layers.0.q_proj.weight": torch.randn(8, 8)}
    for step in (5, 10):
        place = run / f"checkpoint-{step}"
        place.mkdir(parents=True)
        write_adapter(place / "adapter_model.safetensors", {"model.layers.0.q_proj": (8, 8)})
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": step}
        (place / "adapter_config.json").write_text(json.dumps(config))
    right = magmerge.merge(base=base, experts=[run / "checkpoint-10"], params={"lambda": 1})
    with pytest.warns(magmerge.MagmergeWarning, match="checkpoint-10 is taken"):
        result = magmerge.merge(base=base, experts=[run], params={"lambda": 1})
    for name, tensor in right.state_dict().items():
        assert torch.equal(tensor, result.state_dict()[name])


def test_files_of_old_programs_are_read_by_their_names(tmp_path: Path) -> None:
    torch.save({"state_dict": BASE, "epoch": 3}, tmp_path / "m.pth.tar")
    assert set(open_checkpoint(tmp_path / "m.pth.tar").specs) == set(BASE)
    (tmp_path / "m.tar").write_bytes(b"\0" * 600)
    with pytest.raises(CheckpointError, match="no known kind"):
        open_checkpoint(tmp_path / "m.tar")
    (tmp_path / "meta").mkdir()
    torch.save(BASE, tmp_path / "meta" / "consolidated.00.pth")
    assert set(open_checkpoint(tmp_path / "meta").specs) == set(BASE)
    torch.save(BASE, tmp_path / "meta" / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match="slices of each tensor"):
        open_checkpoint(tmp_path / "meta" / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match="slices of each tensor") as caught:
        open_checkpoint(tmp_path / "meta")
    assert "convert_llama_weights_to_hf" in (caught.value.remedy or "")


def test_what_deepspeed_saves_whole_is_read_and_what_it_slices_is_named(tmp_path: Path) -> None:
    place = tmp_path / "run" / "global_step7"
    place.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text("global_step7")
    content = {"module": BASE, "param_shapes": [{}], "ds_version": "0.15"}
    torch.save(content, place / "mp_rank_00_model_states.pt")
    for where in (tmp_path / "run", place):
        read = open_checkpoint(where)
        assert torch.equal(read.read(NAMES[0]), BASE[NAMES[0]])
        assert "is a training's" in read.notes[0]
    (place / "mp_rank_00_model_states.pt").unlink()
    for rank in range(2):
        torch.save(content, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="DeepSpeed has saved it in slices") as caught:
        open_checkpoint(tmp_path / "run")
    assert "zero_to_fp32.py" in (caught.value.remedy or "")


def test_what_verl_saves_whole_is_read_and_what_it_slices_is_named(tmp_path: Path) -> None:
    torch.save(BASE, tmp_path / "model_world_size_1_rank_0.pt")
    assert set(open_checkpoint(tmp_path).specs) == set(BASE)
    (tmp_path / "model_world_size_1_rank_0.pt").unlink()
    for rank in range(2):
        torch.save(BASE, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(CheckpointError, match="verl has saved it in slices"):
        open_checkpoint(tmp_path / "model_world_size_2_rank_0.pt")
    with pytest.raises(CheckpointError, match="verl has saved it in slices") as caught:
        open_checkpoint(tmp_path)
    assert "verl.model_merger merge --backend fsdp" in (caught.value.remedy or "")


def test_a_head_that_is_the_embedding_may_be_listed_alone(tmp_path: Path) -> None:
    folder = index(tmp_path / "e", "model.lm_head.weight")
    with pytest.raises(CheckpointError, match="in no shard"):
        open_checkpoint(folder)
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    assert "model.lm_head.weight" in open_checkpoint(folder).notes[0]


def test_a_distributed_tensor_of_one_gpu_is_whole_and_a_part_is_refused(tmp_path: Path) -> None:
    """As verl saves a model under FSDP."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh, local = init_device_mesh("cpu", (1,)), torch.randn(4, 3)
        whole = DTensor.from_local(local, mesh, [Shard(0)])
        part = DTensor.from_local(
            local, mesh, [Shard(0)], shape=torch.Size((8, 3)), stride=(3, 1), run_check=False
        )
        torch.save({"w": whole}, tmp_path / "model_world_size_1_rank_0.pt")
        torch.save({"w": part}, tmp_path / "part.pt")
    finally:
        dist.destroy_process_group()
    assert torch.equal(open_checkpoint(tmp_path).read("w"), local)
    with pytest.raises(CheckpointError, match="a tensor of a class of its own"):
        open_checkpoint(tmp_path / "part.pt")


def test_a_checkpoint_of_lightning_is_read_under_the_bases_names(tmp_path: Path) -> None:
    from argparse import Namespace

    expert = tuned(BASE, 1)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in expert.items()},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "arguments": Namespace(width=3)},
    }
    torch.save(content, tmp_path / "last.ckpt")
    result = magmerge.merge(base=BASE, experts=[tmp_path / "last.ckpt"], params={"lambda": 1})
    for name, tensor in result.state_dict().items():
        assert torch.allclose(tensor, expert[name], atol=1e-6)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
SHARDS = st.sampled_from(["model.safetensors", "a.safetensors", "..", "", "\0", "a/b", "\\", "é"])


@settings(max_examples=examples(200), deadline=None)
@given(
    content=JSON
    | st.fixed_dictionaries({"weight_map": JSON})
    | st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.sampled_from([*NAMES, "x"]), SHARDS, max_size=4)}
    ),
    cut=st.integers(0, 40),
)
def test_whatever_an_index_says_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: object, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    save_file({NAMES[0]: BASE[NAMES[0]]}, folder / "a.safetensors")
    text = json.dumps(content)
    index = folder / "model.safetensors.index.json"
    index.write_text(text[: len(text) - cut if cut > 20 else len(text)])
    for path in (folder, index):
        with suppress(CheckpointError):
            assert set(open_checkpoint(path).specs) == {NAMES[0]}


def test_an_empty_last_checkpoint_names_the_one_before(tmp_path: Path) -> None:
    run, state = tmp_path / "run", random_state(1)
    for step in (100, 200, 300):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "config.json").write_text("{}")
    save_file(state, run / "checkpoint-100" / "model.safetensors")
    for place in (run, run / "checkpoint-300"):
        with pytest.raises(CheckpointError) as caught:
            magmerge.open_checkpoint(place)
        assert caught.value.remedy.endswith(f": {run / 'checkpoint-100'}")
    before = Path(caught.value.remedy.rpartition(": ")[2])
    assert magmerge.open_checkpoint(before).specs.keys() == state.keys()
