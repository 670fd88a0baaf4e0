"""The page on Python: the front door, `magmerge.__all__`, from its docstrings."""

from __future__ import annotations

import magmerge

HEAD = """# Python

What `import magmerge` gives. Each name is loaded at its first use. A model is a folder, a file, a
mapping from names to tensors, a torch module, or a name on the hub.
"""


MEMBERS = ", members: null, filters: public, members_order: source"


def page() -> str:
    """Markdown with a block of mkdocstrings for each name."""
    homes = magmerge._HOMES
    verbs = [name for name in homes if name[0].islower()]
    nouns = [name for name in homes if name[0].isupper()]
    parts = [HEAD]
    for title, names, more in (("Functions", verbs, ""), ("Classes", nouns, MEMBERS)):
        parts.append(f"## {title}\n")
        for name in sorted(names):
            options = f"heading: magmerge.{name}, toc_label: {name}{more}"
            parts.append(f"::: magmerge.{homes[name]}.{name}\n    options: {{{options}}}\n")
    return "\n".join(parts)
