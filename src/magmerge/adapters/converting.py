"""convert(): an adapter from one naming to another, with every task vector kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from magmerge import dtypes
from magmerge.adapters.nouns import Adapter, Content, LowRank, Naming
from magmerge.adapters.opening import open_adapter
from magmerge.adapters.publishing import write_adapter
from magmerge.adapters.ranks import check_naming
from magmerge.adapters.renaming import rename_content
from magmerge.errors import NonFiniteError


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted: where it is now, from which naming to which, how many modules."""

    path: Path
    source: str
    before: Naming
    after: Naming
    modules: int


def convert(
    adapter: str | Path,
    out: str | Path,
    *,
    naming: str,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an adapter under another naming: peft (a folder), diffusers, kohya, and the others.

    Task vectors are kept as they are, to the rounding of the stored format where parts that one
    naming fuses are put together; in `dtype` if that is given. Raises AdapterError where a module
    has no name in the new naming, with all of them listed.
    """
    wanted, opened = check_naming(naming), open_adapter(adapter)
    content = rename_content(content_of_file(opened, dtype), wanted)
    path = write_adapter(Path(out), content, inputs=opened.files, overwrite=overwrite)
    return Conversion(path, opened.source, opened.naming, wanted, len(opened.modules))


def content_of_file(adapter: Adapter, dtype: str | None = None) -> Content:
    """All that an adapter's file holds, in memory, in `dtype` if that is given."""
    code = None if dtype is None else dtypes.parse_float_dtype(dtype)
    return Content(
        naming=adapter.naming,
        modules={name: _cast(name, adapter, code) for name in adapter.modules},
        kinds={name: module.kind for name, module in adapter.modules.items()},
        whole={name: adapter.read_whole(name) for name in adapter.whole},
        metadata=adapter.metadata,
        config=adapter.config,
    )


def _cast(name: str, adapter: Adapter, code: str | None) -> LowRank:
    factors = adapter.read(name)
    if code is None:
        return factors
    kind = dtypes.torch_dtype(code)
    cast = LowRank(factors.up.to(kind), factors.down.to(kind), factors.scale)
    if not bool(cast.up.isfinite().all() and cast.down.isfinite().all()):
        raise NonFiniteError(
            f"a value is too large for {dtypes.torch_name(code)}",
            tensor=name,
            source=adapter.source,
            remedy="convert to bfloat16 or float32",
        )
    return cast
