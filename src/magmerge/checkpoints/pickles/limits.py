"""Why a pickle is not read: it asks for too much, as a few bytes can, or for what runs code.

None of these names could be called here: they are refused so that their owner knows.
"""

from __future__ import annotations

from collections import Counter

from magmerge.core.errors import printable

STATE = "save the model as safetensors, or its bare state_dict() with torch.save"
"""What to do about a file that holds more than tensors."""
AGAIN = "fetch or save this file once more: it is damaged, or no torch file"
LONGEST = 200
"""Characters of a file's own text that a message repeats."""
STEPS = 10_000_000
"""Opcodes of a file and arguments of its calls, at most. A training checkpoint of a large model has
some 100,000.
"""
MADE = 1_000_000
"""Containers, records and tensors that it may make."""
GROWTH, SPARE = 4, 1 << 16
"""The bytes that it may make by conversions: so many times its own size, and a few for small ones.
"""
NESTED = 3
"""Pickles within pickles."""


class RefusedError(Exception):
    """A pickle asks for what is not done, claims what is not there, or is none."""

    def __init__(self, problem: str, remedy: str = STATE) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)


class DamagedError(RefusedError):
    """A file that no program writes like this."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, AGAIN)


class EmptyError(RefusedError):
    """A state dictionary without tensors."""


def spoken(text: object) -> str:
    """A file's own text for a message, printable and short; of odd things the type alone is told.
    Tuples in tuples take for ever to write out.
    """
    line = printable(_written(text)[: LONGEST + 1])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return str(value[: LONGEST + 1])
    texts = value.args if isinstance(value, Exception) else (value,)
    plain = all(text is None or isinstance(text, str | bytes | int | float) for text in texts)
    return str(value) if plain else f"a {type(value).__name__}"


class Budget:
    """What is left of all that, for a file of `size` bytes and the pickles within it; and the names
    that it uses. `members` are the attributes of classes that it asks for.
    """

    def __init__(self, size: int) -> None:
        self.names: Counter[str] = Counter()
        self.depth = 0
        self.members = 0
        self._steps = STEPS
        self._made = MADE
        self._bytes = GROWTH * size + SPARE

    def step(self, count: int = 1) -> None:
        """One more opcode, or so many arguments that a call is given."""
        self._steps -= count
        if self._steps < 0:
            raise RefusedError(f"it has more than {STEPS:,} opcodes: no model needs so many")

    def make(self, entries: int = 0) -> None:
        """One more thing, made of so many entries that were there before."""
        self._made -= 1
        self._steps -= entries
        if self._made < 0 or self._steps < 0:
            raise RefusedError(f"it makes more than {MADE:,} objects: no model needs so many")

    def convert(self, size: int) -> None:
        """So many bytes more, that are not in the file."""
        self._bytes -= size
        if self._bytes < 0:
            raise RefusedError("it grows without limit when it is read")


OLD_MODULES = {
    **{"__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg"},
    **{"cPickle": "pickle", "commands": "subprocess"},
}
"""What Python 2 called some modules."""

MODULES = frozenset(
    """
    os posix nt posixpath ntpath subprocess _posixsubprocess popen2 sys shutil socket _socket
    socketserver importlib _frozen_importlib _frozen_importlib_external imp _imp runpy ctypes
    _ctypes cffi pickle _pickle pickletools dill cloudpickle joblib marshal shelve types code codeop
    pty pdb bdb cProfile timeit doctest webbrowser urllib http ftplib smtplib telnetlib asyncio
    multiprocessing concurrent threading _thread tempfile fileinput io _io linecache pkgutil
    pkg_resources pip setuptools distutils venv ensurepip zipimport sysconfig gc atexit operator
    _operator codecs
    """.split()  # noqa: SIM905
)
"""Modules that are refused with all that is in them."""
INNER = frozenset({"os", "posix", "sys", "subprocess", "shutil", "importlib", "builtins"})
"""Those that are refused as a part of another module too: torch.serialization.os is os."""

NAMES = frozenset(
    """
    torch.load torch.hub torch.package torch.jit torch.ops torch.classes torch.compile
    torch.serialization torch.distributed.rpc torch.utils.cpp_extension torch.utils.collect_env
    torch.utils.data.datapipes torch._dynamo torch._inductor torch.fx.graph_module
    torch.testing torch.utils._config_module torch.utils.bottleneck
    numpy.load numpy.fromfile numpy.memmap numpy.testing numpy.f2py numpy.distutils numpy.lib.npyio
    pandas.eval pandas.read_pickle pandas.io.pickle functools.reduce
    """.split()  # noqa: SIM905
)
"""Further modules, classes and functions, each with all that is in it."""

HARMLESS_BUILTINS = frozenset(
    """
    object type bool int float complex str bytes bytearray list tuple dict set frozenset slice range
    Ellipsis NotImplemented NoneType
    """.split()  # noqa: SIM905
)
ERRORS = ("Error", "Exception", "Warning")
LONGEST_NAME = 1000
"""Characters of a name, with its module's. It is taken apart again wherever it is used."""
HARMLESS = frozenset(
    """
    copyreg.__newobj__ copyreg.__newobj_ex__ torch.serialization._get_layout types.SimpleNamespace
    types.MappingProxyType codecs.encode _io.BytesIO _io.StringIO
    """.split()  # noqa: SIM905
)
"""Names from these modules that training programs' own objects hold."""
MEMBER = "builtins.getattr"
"""How some versions of Python spell a member of an enumeration, which transforms of images hold."""


RUNS_MEMBER = f"reading it would run code: {MEMBER}"
"""What is wrong with that function alone, which nothing but a call of it needs."""


def member_of(owner: str, name: str) -> str:
    """The whole name of an attribute that is public and plain; RefusedError for any other."""
    whole = _short(f"{owner}.{name}")
    plain = name.isidentifier() and not name.startswith("_")
    if not plain or _is_dangerous(whole.split("."), [name]):
        raise RefusedError(f"{RUNS_MEMBER} of {spoken(whole)}")
    return whole


def named(module: str, name: str) -> str:
    """The whole name of a global; RefusedError where its like runs code."""
    module = OLD_MODULES.get(module, module)
    whole = _short(f"{module}.{name}")
    known = whole in HARMLESS or whole == MEMBER
    if not known and _is_dangerous(whole.split("."), name.split(".")[:-1]):
        raise RefusedError(f"reading it would run code: {spoken(whole)}")
    return whole


def _short(whole: str) -> str:
    if len(whole) > LONGEST_NAME:
        raise RefusedError(f"it names a class or function in {len(whole):,} characters")
    return whole


def _is_dangerous(parts: list[str], owners: list[str]) -> bool:
    """`owners` are what the last part is an attribute of, in its own module."""
    if parts[0] == "builtins":
        # Attributes of a class lead to all of Python.
        known = parts[1] in HARMLESS_BUILTINS or parts[1].endswith(ERRORS)
        return not known or len(parts) > 2
    starts = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return (
        parts[0] in MODULES
        or not MODULES.isdisjoint(owners)
        or not INNER.isdisjoint(parts[1:])
        or any(part.startswith("__") for part in parts)
        or not NAMES.isdisjoint(starts)
    )
