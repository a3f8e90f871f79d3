"""Texts that can be written and tokenized, and short ones of long ones."""

from collections.abc import Iterable


def is_unicode(text: str) -> bool:
    """Whether a text can be written: it holds no half of a character, which JSON and command lines let through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_texts(texts: Iterable[str]) -> None:
    """Raise `ValueError` that names the first text which is no valid Unicode."""
    for number, text in enumerate(texts):
        if isinstance(text, str) and not is_unicode(text):
            shown = text.encode("ascii", "backslashreplace").decode()[:100]
            raise ValueError(f"text {number} is no valid Unicode, it holds half of a character: {shown!r}.")


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, where possible cut between words; dots stand for the rest."""
    return text if len(text) <= most else (text[:most].rsplit(" ", 1)[0] or text[:most]) + " ..."
