"""An adapter from one naming to another, with every task vector kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from magmerge import dtypes
from magmerge.adapters.merging import cast_once
from magmerge.adapters.nouns import Adapter, Content, LowRank, Naming
from magmerge.adapters.opening import open_adapter
from magmerge.adapters.publishing import write_adapter
from magmerge.adapters.ranks import check_naming
from magmerge.adapters.renaming import rename_content


@dataclass(frozen=True, slots=True)
class Conversion:
    """What adapter was converted: where it is now, from which naming to which, how many modules."""

    path: Path
    source: str
    before: Naming
    after: Naming
    modules: int


def convert_adapter(
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
        whole={name: _whole(name, adapter, code) for name in adapter.whole},
        metadata=adapter.metadata,
        config=adapter.config,
    )


def _cast(name: str, adapter: Adapter, code: str | None) -> LowRank:
    factors = adapter.read(name)
    if code is None:
        return factors
    kind = dtypes.torch_dtype(code)
    return LowRank(
        cast_once(factors.up, kind, name), cast_once(factors.down, kind, name), factors.scale
    )


def _whole(name: str, adapter: Adapter, code: str | None) -> Tensor:
    tensor = adapter.read_whole(name)
    return tensor if code is None else cast_once(tensor, dtypes.torch_dtype(code), name)
