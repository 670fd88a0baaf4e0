"""Cleaning of texts: tidy, mask what identifies people, cut, and normalise for comparison."""

import html
import re

MAX_CHARACTERS = 300

_EMAIL = re.compile(r"(?:mailto:)?[\w.+%=-]+\s?(?:@|\(at\)|\[at\])\s?[\w-]+(?:\.[\w-]+)*", re.I)
_URL = re.compile(
    r"(?:https?|ftp)\s?:\s?/+\S*|\bwww\.\S+"
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|info|biz|edu|gov|ie|uk|de|fr|tv|ws|to|cc)\b\S*",
    re.I,
)
# Seven or more digits with the usual separators: phone and fax numbers, account numbers.
_PHONE = re.compile(r"\+?\(?\d(?:[\s().\-/]{0,3}\d){6,}")
_HANDLE = re.compile(r"@\w+")
# A demonstration prints its texts: explicit, abusive and inflammatory ones stay out of the data.
_UNFIT = re.compile(
    r"\b(?:sex|porn|xxx|nud[ei]|naked|penis|viagra|erection|orgasm|horny|slut|whore|bitch|fuck"
    r"|cunt|pussy|cock\b|dick\b|cum\b|tits|anal\b|escort|rape|nigg|fag+ots?\b|lesbian|breast"
    r"|libido|virgins?\b|impoten|ejacul|webcam|hardcore|teens?\b|adult (?:site|video|entertain)"
    r"|ass\b|eroti[cks]|endowed|enlarge|vacuum pump|livecam|slaughter"
    r"|shit\b|gays?\b|hiv\b|nazi|hitler|terroris|qaeda|jews?\b|muslim|islam|suicid|abortion)",
    re.I,
)


def tidy(text: str) -> str:
    """Resolve HTML entities, unify quotes, collapse white space."""
    text = html.unescape(text).replace("''", '"').replace("``", '"').replace("\u2019", "'")
    return " ".join(text.split())


def strip_html(text: str) -> str:
    """Remove scripts, styles, comments and tags; block tags become spaces."""
    text = re.sub(r"(?is)<(script|style|title)\b.*?</\1\s*>|<!--.*?-->", " ", text)
    return re.sub(r"(?s)<[a-zA-Z/!?][^>]*>?", " ", text)


def mask(text: str) -> str:
    """Replace e-mail addresses, URLs and phone numbers by the words email, link and number."""
    text = _EMAIL.sub("email", text)
    text = _URL.sub("link", text)
    return _PHONE.sub("number", text)


def drop_handles(text: str) -> str:
    """Remove @names and URLs; a placeholder in their stead would give a tweet away."""
    return tidy(_HANDLE.sub(" ", _URL.sub(" ", text)))


def is_unfit(text: str) -> bool:
    """Say whether the text has a word that does not belong in a demonstration."""
    return _UNFIT.search(text) is not None


def clip(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Cut at the last word boundary within `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[: limit + 1].rsplit(" ", 1)[0]
    return head[:limit].rstrip()


def words(text: str) -> list[str]:
    """Lower-case words without digits and punctuation, the form in which texts are compared."""
    return re.findall(r"[^\W\d_]+", text.casefold())
