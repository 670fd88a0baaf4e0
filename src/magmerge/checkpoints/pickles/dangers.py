"""Names that a pickle uses to run code. None of them could be called here: they are refused so that
their owner knows.
"""

from __future__ import annotations

from magmerge.checkpoints.pickles.limits import RefusedError, spoken

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


def member_of(owner: str, name: str) -> str:
    """The whole name of a class's or an object's attribute that is public and plain; RefusedError
    for any other.
    """
    whole = _short(f"{owner}.{name}")
    plain = name.isidentifier() and not name.startswith("_")
    if not plain or _is_dangerous(whole.split("."), [name]):
        raise RefusedError(f"reading it would run code: {MEMBER} of {spoken(whole)}")
    return whole


def refuse_member() -> RefusedError:
    """For the function alone, which nothing but a call of it needs."""
    return RefusedError(f"reading it would run code: {MEMBER}")


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
