"""Checks of texts, and shortening them for messages."""

from collections.abc import Iterable


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded. An unpaired surrogate cannot; JSON and command lines may contain one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Iterable[str]) -> None:
    """Raise `ValueError` for the first text with an unpaired surrogate; the message gives its number."""
    for number, text in enumerate(texts):
        if isinstance(text, str) and not is_unicode(text):
            shown = text.encode("ascii", "backslashreplace").decode()[:100]
            raise ValueError(f"Text {number} contains an unpaired surrogate, which is not valid Unicode: {shown!r}.")


def shortened(text: str, length: int) -> str:
    """Shorten a text to `length` characters, between words if possible, and append dots for the rest."""
    return text if len(text) <= length else (text[:length].rsplit(" ", 1)[0] or text[:length]) + " ..."
