"""Where the report goes, and what is said where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import magmerge
from magmerge.checkpoints.output import own_files
from magmerge.cli import main
from magmerge.core.errors import CheckpointError, MagmergeError, OutputError
from magmerge.report import account, html_file
from tests.report.documents import Page, document, evaluation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "merged"
    made.mkdir()
    (made / "magmerge.json").write_text(json.dumps(document()))
    return made


def test_the_report_is_beside_the_record(folder: Path) -> None:
    assert account.FILE == own_files.RECORD
    assert magmerge.write_report(folder) == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == ["magmerge.json", "report.html"]
    assert magmerge.write_report(folder / "magmerge.json", overwrite=True) == folder / "report.html"
    other = folder / "other.json"
    other.write_text(json.dumps(document()))
    assert magmerge.write_report(other).name == "other.report.html"


def test_of_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "out.magmerge.json").write_text(json.dumps(document()))
    (tmp_path / "out.safetensors").touch()
    expected = tmp_path / "out.report.html"
    assert magmerge.write_report(tmp_path / "out.safetensors") == expected
    assert magmerge.write_report(tmp_path / "out.magmerge.json", overwrite=True) == expected


def test_a_real_merge_has_a_report(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    magmerge.merge(base=folders[0], experts=folders[1:], calibrate="wsc", out=out)
    text = magmerge.write_report(out, tmp_path / "r.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.faults == []
    assert "WSC then set the magnitude of three layers" in found.text
    assert "Magnitude beside the experts" in found.text
    result = magmerge.merge(base=folders[0], experts=folders[1:], calibrate="wsc")
    for record in result.records:
        assert record.name in found.text
        if record.calibrated_by:
            assert f"{record.xi:.3f}" in found.text


def test_scores_come_from_files_and_mappings(folder: Path, tmp_path: Path) -> None:
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    one.write_text(json.dumps(evaluation("first")))
    several.write_text(json.dumps([evaluation("second"), evaluation("third")]))
    path = magmerge.write_report(folder, scores=[one, str(several), evaluation("fourth")])
    assert "task first second third fourth" in Page(path.read_text(encoding="utf-8")).text


def test_an_existing_report_is_kept_unless_asked(folder: Path) -> None:
    path = magmerge.write_report(folder)
    first = path.read_text()
    path.write_text(first.replace("</body>", "old</body>"))
    with pytest.raises(OutputError, match="exists already"):
        magmerge.write_report(folder)
    assert path.read_text() != first
    magmerge.write_report(folder, overwrite=True)
    assert path.read_text() == first
    path.write_text("mine")
    with pytest.raises(OutputError, match="no file of magmerge's"):
        magmerge.write_report(folder, overwrite=True)
    assert path.read_text() == "mine"


def test_only_pages_are_written(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"\.html"):
        magmerge.write_report(folder, folder / "model.safetensors", overwrite=True)
    (folder / "a.html").mkdir()
    with pytest.raises(OutputError, match="folder"):
        magmerge.write_report(folder, folder / "a.html", overwrite=True)
    with pytest.raises(OutputError, match="its folder does not exist"):
        magmerge.write_report(folder, folder / "none" / "a.html")
    with pytest.raises(OutputError, match="cannot be written"):
        magmerge.write_report(folder, folder / f"{'x' * 300}.html")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no object"),
        (b"{}", "magmerge"),
        (b'{"a": 1}', "field required"),
    ],
)
def test_what_is_no_record_of_magmerge_s(folder: Path, content: bytes, words: str) -> None:
    (folder / "magmerge.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        magmerge.write_report(folder)
    assert caught.value.remedy
    assert str(folder / "magmerge.json") in str(caught.value)
    assert not (folder / "report.html").exists()


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    for missing in (tmp_path / "nothing", folder / "empty", tmp_path / "x.safetensors"):
        with pytest.raises(CheckpointError, match="no such file"):
            magmerge.write_report(missing)
    with pytest.raises(CheckpointError, match="cannot be read"):
        magmerge.write_report(folder, scores=[tmp_path / "nothing.json"])
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1]")
    with pytest.raises(CheckpointError, match="no results"):
        magmerge.write_report(folder, scores=[wrong])


def test_nothing_is_left_where_writing_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html_file.os, "fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        magmerge.write_report(folder)
    assert [file.name for file in folder.iterdir()] == ["magmerge.json"]


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    from magmerge.report import page

    page._template.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MagmergeError, match=library) as caught:
        magmerge.write_report(folder)
    assert caught.value.remedy == "pip install 'magmerge[report]'"


def test_the_verb_does_what_the_function_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["magmerge", "report", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    assert run(folder) == 0
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert run(folder) == 1
    assert "exists already" in capsys.readouterr().err
    scores = folder / "scores.json"
    scores.write_text(json.dumps(evaluation("m")))
    assert run(folder, "--scores", scores, "--out", folder / "b.html", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": str(folder / "b.html"), "size": (folder / "b.html").stat().st_size}
    assert "81.2" in (folder / "b.html").read_text(encoding="utf-8")


def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, magmerge\n"
        f"magmerge.write_report({str(folder)!r})\n"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
