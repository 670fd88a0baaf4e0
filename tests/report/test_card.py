"""README.md of a result: a model card that the hub takes, whatever the models' names hold."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import magmerge
from magmerge.core.errors import CheckpointError, MagmergeError, OutputError
from magmerge.report.card import card_files
from tests.conftest import CommandLine, random_state, tuned
from tests.report.documents import Page, document, evaluation
from tests.report.test_fuzz import changed, few, steps, values

HERE = Path(__file__).parent
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32}
SHAPES = {f"model.layers.{block}.mlp.up_proj.weight": (64, 64) for block in range(2)}
KEYS = {
    "base_model", "base_model_relation", "library_name", "pipeline_tag", "tags", "language",
    "datasets", "license", "license_name", "license_link",
}  # fmt: skip
HEADINGS = {
    "How it was made", "Calibration", "Notes", "Evaluation", "Recipe", "Citation",
    "Files that it was made of",
}  # fmt: skip


def metadata(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text.split("---\n", 2)[1])
    assert isinstance(content, dict)
    return content


def drawn(text: str) -> Page:
    """The card as a web page, GitHub's tables among its Markdown."""
    markdown = pytest.importorskip("markdown_it")
    reader = markdown.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Page(reader.render(text.split("---\n", 2)[2]))


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two experts, in a folder that is nobody's business."""
    base = random_state(0, SHAPES)
    folders = []
    for name, state in (("base", base), ("maths", tuned(base, 1)), ("code", tuned(base, 2))):
        folder = tmp_path / "my secret place" / name
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(LLAMA))
        folders.append(folder)
    return folders


def tell(folder: Path, **told: Any) -> None:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(told)}---\n# its own card\n")


def merge(models: list[Path], out: Path, **more: Any) -> str:
    path = magmerge.merge(base=models[0], experts=models[1:], method="ties", out=out, **more).path
    assert path is not None
    return (path / "README.md").read_text()


def test_every_folder_gets_a_card_and_the_donors_is_not_copied(
    models: list[Path], tmp_path: Path
) -> None:
    tell(models[0], license="apache-2.0", language="en", base_model="org/first")
    tell(models[1], license="mit", language=["de", "en"], datasets=["org/sums"])
    tell(models[2], license="apache-2.0", base_model=["org/coder"])
    text = merge(models, tmp_path / "out", params={"weights": [0.75, 0.25]}, calibrate="wsc")
    assert metadata(text) == {
        "base_model": ["org/first", "org/coder"], "base_model_relation": "merge",
        "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["merge", "magmerge", "ties", "wsc"], "language": ["en", "de"],
        "datasets": ["org/sums"], "license": "apache-2.0",
    }  # fmt: skip
    assert "its own card" not in text
    page = drawn(text)
    assert not [fault for fault in page.faults if "closed" in fault or "closes" in fault]
    for words in ("arXiv:2306.01708", "maths expert maths 0.75 mit", "code expert code 0.25",
                  "density 0.2", "method: ties", "magmerge merge magmerge.yaml OUT"):  # fmt: skip
        assert words in page.text, words
    assert (tmp_path / "out" / "magmerge-factors.svg").read_text().startswith("<svg")
    assert "@misc{magic" in text
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_what_was_not_calibrated_has_no_picture_and_does_not_cite_magic(
    models: list[Path], tmp_path: Path
) -> None:
    text = merge(models, tmp_path / "out")
    assert "MAGIC" not in text
    assert not (tmp_path / "out" / "magmerge-factors.svg").exists()
    assert "license" not in metadata(text)
    assert "No licence is given" in text
    magmerge.merge(base=models[0], experts=models[1:], out=tmp_path / "one.safetensors")
    assert not list(tmp_path.glob("*README*"))


@pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")
def test_licences_that_ask_something_are_warned_of_by_plan_and_card(
    models: list[Path], tmp_path: Path
) -> None:
    tell(models[0], license="llama3")
    tell(models[1], license="cc-by-nc-4.0")
    text = merge(models, tmp_path / "out")
    told = metadata(text)
    assert (told["license"], told["license_name"]) == ("other", "llama3-and-cc-by-nc-4.0")
    plan = magmerge.plan(base=models[0], experts=models[1:], method="ties")
    for words in ("allows no commercial use", "Built with Meta Llama 3", "told by code"):
        assert any(words in warning for warning in plan.warnings), words
        assert words in drawn(text).text
    assert drawn(text).text.count("allows no commercial use") == 1
    # The remedy: once its folder tells the licence, the warning is gone.
    tell(models[2], license="mit")
    plan = magmerge.plan(base=models[0], experts=models[1:], method="ties")
    assert not any("told by code" in warning for warning in plan.warnings)


def test_adapters_name_the_model_that_they_go_on(tmp_path: Path, models: list[Path]) -> None:
    tell(models[0], base_model="org/first", license="mit")
    out = tmp_path / "lora"
    with pytest.warns(magmerge.MagmergeWarning, match="no licence is told by maths"):
        magmerge.extract(base=models[0], model=models[1], rank=2, out=out)
    told = metadata((out / "README.md").read_text())
    assert told["library_name"] == "peft"
    assert (told["base_model"], told["base_model_relation"]) == (["org/first"], "adapter")
    adapters = [tmp_path / "left", tmp_path / "right"]
    for place, folder in enumerate(adapters):
        folder.mkdir()
        state = load_file(out / "adapter_model.safetensors")
        state = {name: tensor + place for name, tensor in state.items()}
        save_file(state, folder / "adapter_model.safetensors")
        config = json.loads((out / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "org/first"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    magmerge.merge(experts=adapters, params={"lambda": 1.0}, out=tmp_path / "both")
    text = (tmp_path / "both" / "README.md").read_text()
    assert metadata(text)["base_model"] == ["org/first"]
    assert metadata(text)["tags"][:3] == ["merge", "magmerge", "lora"]
    assert "A LoRA adapter, a merge of two experts" in text


def test_a_card_that_somebody_changed_is_never_replaced_in_silence(
    models: list[Path], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    out = tmp_path / "out"
    text = merge(models, out)
    assert merge(models, out, overwrite=True) == text
    (out / "README.md").write_text(text.replace("merged by", "lovingly merged by"))
    with pytest.raises(OutputError, match=r"README\.md"):
        merge(models, out, overwrite=True)
    with pytest.raises(OutputError, match="somebody wrote or changed it") as raised:
        magmerge.card(out, write=True)
    assert "--yes" in str(raised.value.remedy)
    assert magmerge_cli("card", out, "--write", "--yes").code == 0
    assert (out / "README.md").read_text() == text
    assert merge(models, out, overwrite=True) == text


def test_the_card_is_made_again_from_the_record_with_scores(
    models: list[Path], tmp_path: Path, magmerge_cli: CommandLine
) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores.json"
    text = merge(models, out, calibrate="wsc")
    assert magmerge_cli("card", out).out == text
    scores.write_text(json.dumps(evaluation(str(out))))
    done = magmerge_cli("card", out, "--scores", scores, "--write")
    assert done.code == 0, done.err
    page = drawn((out / "README.md").read_text())
    assert "Reviews; accuracy, 300 samples 81.2; 77.0 to 85.0; 90.3 % of expert" in page.text
    assert "Not evaluated" not in page.text
    assert magmerge_cli("card", out, "--json").json["card"] == text
    assert magmerge_cli("verify", out).code == 0


def test_no_card_of_what_magmerge_did_not_write(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        magmerge.card(models[0])
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="a single file has no model card"):
        magmerge.card(tmp_path / "one.safetensors")


def test_a_result_of_a_result_knows_where_it_is_from(models: list[Path], tmp_path: Path) -> None:
    tell(models[0], license="gemma", base_model="org/first")
    for folder in models[1:]:
        tell(folder, license="gemma", base_model="org/tuned")
    with pytest.warns(magmerge.MagmergeWarning, match="Gemma Terms"):
        merge(models, tmp_path / "first")
    with pytest.warns(magmerge.MagmergeWarning, match="Gemma Terms"):
        again = merge([models[0], tmp_path / "first", models[1]], tmp_path / "second")
    assert metadata(again)["license"] == "gemma"
    assert metadata(again)["base_model"] == ["org/first", "org/tuned"]


def test_the_recipe_of_the_card_runs_with_the_models_under_its_names(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = merge(models, tmp_path / "out", calibrate="wsc", dtype="bfloat16")
    recipe = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert recipe is not None
    monkeypatch.chdir(models[0].parent)
    (tmp_path / "recipe.yaml").write_text(recipe[1])
    magmerge.run(tmp_path / "recipe.yaml", tmp_path / "again")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "again"))
    assert all(first[name].equal(second[name]) for name in first)


def test_the_golden_card() -> None:
    content = document(blocks=2, dsc=True)
    content["inputs"][0]["facts"] = {"id": "org/base", "license": "apache-2.0"}
    files = card_files(content, {"config.json": json.dumps(LLAMA).encode()})
    for name, file in (("README.md", "card.md"), ("magmerge-factors.svg", "card.svg")):
        assert files[name].decode() == (HERE / file).read_text(), f"compare with {file}"


class Hub(BaseHTTPRequestHandler):
    """The hub's check of a card's metadata, as far as its documentation tells it: known keys, names
    of repositories, licences, tags and languages. 400 with a message, or 200.
    """

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.fault(body) if self.path == "/api/validate-yaml" else "no such page"
        self.send_response(400 if fault else 200)
        self.end_headers()
        self.wfile.write((fault or "ok").encode())

    def fault(self, body: dict[str, Any]) -> str:
        from huggingface_hub.utils import validate_repo_id

        told = metadata(body["content"])
        if set(told) - KEYS:
            return f"unknown keys: {set(told) - KEYS}"
        for name in (*told.get("base_model", ()), *told.get("datasets", ())):
            validate_repo_id(name)
        if told.get("license") == "other" and "license_name" not in told:
            return "license_name is required"
        if "base_model_relation" in told and "base_model" not in told:
            return "a relation to nothing"
        if not all(re.fullmatch(r"[a-z]{2,3}", one) for one in told.get("language", ())):
            return "language"
        return "" if all(isinstance(tag, str) and tag for tag in told["tags"]) else "tags"

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()


@pytest.mark.usefixtures("hub")
def test_huggingface_hub_reads_and_validates_it(models: list[Path], tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    tell(models[0], license="other", license_name="My own!", base_model="org/first", language="no")
    for folder in models[1:]:
        tell(folder, license="apache-2.0")
    with pytest.warns(magmerge.MagmergeWarning, match="terms of its own"):
        merge(models, tmp_path / "out", calibrate="wsc")
    path = tmp_path / "out" / "README.md"
    card = hub.ModelCard.load(path)
    card.validate()
    assert card.data.license_name == "my-own"
    assert card.data.base_model == ["org/first"]
    assert card.data.language == ["no"]
    assert hub.metadata_load(path) == metadata(path.read_text())
    broken = path.read_text().replace("license_name", "licence_name")
    with pytest.raises(ValueError, match="unknown keys"):
        hub.ModelCard(broken).validate()


hostile = st.text(max_size=30) | st.sampled_from(
    [
        "x\n---\nlicense: mit\n---", "<script>alert(1)</script>", "[a](javascript:alert(1))", "a|b",
        "`b`", "```\n# h", "&lt;img src=x&gt;", "\\|x", "![x](y)", "https://evil.example", "<!-- x",
        "{{ x }}", "# head", "*a* __b__", "$(x)", "a\x00b", "www.evil.example", "\u202ex", "~~~~x",
    ]
)  # fmt: skip


def check(files: dict[str, bytes]) -> None:
    """Nothing of a name is markup: known keys, headings and links, and no tags of others."""
    text = files["README.md"].decode()
    assert set(metadata(text)) <= KEYS
    page = drawn(text)
    tags = {tag for tag, _ in page.seen}
    plain = {"h1", "h2", "p", "strong", "code", "pre", "a", "img", "table", "thead", "tbody", "tr"}
    assert tags <= plain | {"th", "td", "ul", "li", "blockquote"}
    assert page.count("h1") == 1
    assert page.count("h2") <= len(HEADINGS)
    links = [seen["href"] for tag, seen in page.seen if tag == "a"]
    assert all(link.startswith(("https://arxiv.org/abs/", "https://huggingface.co/"))
               for link in links)  # fmt: skip
    assert all(seen["src"] == "magmerge-factors.svg" for tag, seen in page.seen if tag == "img")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert page.count("tr") == len(rows) - page.count("table")
    if "magmerge-factors.svg" in files:
        ElementTree.fromstring(files["magmerge-factors.svg"])


@few
@given(hostile, hostile, hostile)
def test_nothing_in_a_name_is_markup(name: str, path: str, note: str) -> None:
    content = document(blocks=1)
    content["recipe"]["experts"] = {name: f"/home/secret/{path}", "other": path}
    content["recipe"]["params"] = {"weights": [0.5, note], name: note}
    content["warnings"] = [note, f"/home/secret/{path}: it is odd"]
    content["inputs"] = [
        {"role": "base", "source": path, "files": {name: "00" * 32}, "facts": {"id": name}},
        *({"role": "expert", "source": f"/home/secret/{path}", "files": {},
           "facts": {"license": note, "languages": [name], "parents": [path]}} for _ in "ab"),
    ]  # fmt: skip
    content["layers"][1]["name"] = name
    check(card_files(content, {"config.json": b"{", "magmerge.yaml": note.encode()}))


@few
@given(steps, values)
def test_whatever_the_record_holds(path: list[int], value: Any) -> None:
    try:
        files = card_files(changed(document(blocks=1), path, value), {})
    except MagmergeError as error:
        assert error.remedy
    else:
        check(files)
