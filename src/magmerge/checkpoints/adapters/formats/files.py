"""The files that hold an adapter, in the format of its naming."""

from __future__ import annotations

from magmerge.checkpoints.adapters.formats.diffusers import write_diffusers
from magmerge.checkpoints.adapters.formats.kohya import write_kohya
from magmerge.checkpoints.adapters.formats.peft import write_peft
from magmerge.checkpoints.adapters.nouns import Content, Encoded
from magmerge.core.errors import AdapterError


def encode(content: Content) -> dict[str, Encoded]:
    """The files that hold an adapter, by the folder that they belong in.

    One file under "" for the namings of single files. For PEFT, a folder with its
    adapter_config.json for each model of a pipeline; under "" if there is only one. AdapterError
    for an adapter without modules, and for what the format has no place for: replaced tensors and
    embeddings in any but PEFT's.
    """
    if not content.modules:
        raise AdapterError("an adapter without modules", remedy="merge adapters that have some")
    if content.naming == "peft":
        return write_peft(content)
    embeddings = [name for name, kind in content.kinds.items() if kind == "embedding"]
    homeless = [*content.whole, *embeddings]
    if homeless:
        raise AdapterError(
            f"the {content.naming} format has no place for {', '.join(homeless)}",
            remedy="write the adapter as a PEFT folder",
        )
    kohya = content.naming not in ("diffusers", "diffusers_old")
    return {"": write_kohya(content) if kohya else write_diffusers(content)}
