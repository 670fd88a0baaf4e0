"""What would run code is refused by its name, wherever it is; and nothing is ever run."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from magmerge.checkpoints.pickles.torch_pickle import load_file
from magmerge.core.errors import CheckpointError
from tests.checkpoints.pickles import load_tensors

NAMES = [
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "sys.exit", "shutil.rmtree",
    "socket.socket", "importlib.import_module", "runpy.run_path", "ctypes.CDLL", "pickle.loads",
    "_pickle.loads", "marshal.loads", "types.FunctionType", "types.CodeType", "code.interact",
    "pty.spawn", "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.__import__",
    "builtins.open", "builtins.compile", "builtins.type.__subclasses__", "operator.attrgetter",
    "operator.methodcaller", "__builtin__.eval", "commands.getoutput", "cPickle.loads",
    "torch.load", "torch.hub.load", "torch.serialization.os.system", "numpy.load", "io.open",
    "functools.reduce", "torch.nn.Module.__init_subclass__", "multiprocessing.Process",
]  # fmt: skip


def spelt(name: str) -> list[bytes]:
    """Pickles that name it: called in each way, and only held."""
    module, _, last = name.rpartition(".")
    if name.count(".") > 1 and module.startswith(("builtins", "torch")):
        module, _, last = name.partition(".")
    plain = f"c{module}\n{last}\n".encode()
    stacked = b"\x8c" + bytes([len(module)]) + module.encode()
    stacked += b"\x8c" + bytes([len(last)]) + last.encode() + b"\x93"
    given = b"(X\x04\x00\x00\x00touct"
    pickles = [plain + given + b"R.", stacked + given + b"R.", plain + given + b"\x81.",
               b"(" + plain + b"X\x01\x00\x00\x00ao.", plain + b").}b.",
               f"(X\x01\x00\x00\x00ai{module}\n{last}\n.".encode("latin-1"),
               b"}X\x01\x00\x00\x00a" + plain + b"s.", b"]" + stacked + b"a."]  # fmt: skip
    return [b"\x80\x04" + one for one in pickles]


@pytest.mark.parametrize("name", NAMES)
def test_dangerous_names_are_refused_by_name(tmp_path: Path, name: str) -> None:
    old = {"__builtin__.eval": "builtins.eval", "commands.getoutput": "subprocess.getoutput",
           "cPickle.loads": "pickle.loads"}  # fmt: skip
    for content in spelt(name):
        file = tmp_path / "m.pt"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="would run code") as caught:
            load_tensors(file)
        assert old.get(name, name) in caught.value.problem
        assert "state_dict" in str(caught.value.remedy)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (exec, (f"open({str(self.mark)!r}, 'w').close()",))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run_also_beside_sound_tensors(tmp_path: Path, zipped: bool) -> None:
    mark, module = tmp_path / "mark", torch.nn.Linear(2, 2)
    module.hidden = Bomb(mark)
    torch.save({"model": module}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"builtins\.exec"):
        load_tensors(tmp_path / "m.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps([module]))
    with pytest.raises(CheckpointError, match=r"builtins\.exec"):
        load_tensors(tmp_path / "p.pt")
    assert not mark.exists()


def test_a_class_of_anybody_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    evil = types.ModuleType("evil")
    evil.Thing = type("Thing", (), {"__module__": "evil"})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "evil", evil)
        torch.save({"model": {"w": torch.ones(2)}, "args": evil.Thing()}, tmp_path / "m.pt")
    found = load_file(tmp_path / "m.pt")
    assert found.tensors["w"].tolist() == [1, 1]
    assert dict(found.passed) == {"evil.Thing": 1}
    assert "evil" not in sys.modules


def test_a_member_of_an_enumeration_is_no_danger_but_other_attributes_are(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    tensor = pickle.dumps({"w": torch.ones(1)}, protocol=2)[2:-1]

    def held(owner: bytes, name: bytes) -> bytes:
        spelt = b"X" + bytes([len(name), 0, 0, 0]) + name
        member = b"cbuiltins\ngetattr\n" + owner + spelt + b"\x86R"
        model = b"X\x05\x00\x00\x00model" + tensor
        return b"\x80\x02}X\x01\x00\x00\x00a" + member + b"s" + model + b"s."

    file.write_bytes(held(b"clib\nMode\n", b"BICUBIC"))
    assert load_tensors(file)["w"].item() == 1
    for owner, name in ((b"clib\nMode\n", b"__globals__"), (b"clib\nMode\n", b"_x"),
                        (b"X\x01\x00\x00\x00a", b"upper"), (b"cbuiltins\nobject\n", b"x"),
                        (b"cbuiltins\ngetattr\n", b"x")):  # fmt: skip
        file.write_bytes(held(owner, name))
        with pytest.raises(CheckpointError, match=r"run code: builtins\.getattr"):
            load_tensors(file)
