"""Splits a long caption into sentences and keeps where each of them lies in the caption.

The library sentencex proposes boundaries; the rules in this file then decide the cases that long captions are full of
and that it gets wrong or cannot know: lists, signs quoted in the middle of a sentence, inch marks, a missing space
after a full stop, captions written without capitals, abbreviations that may also end a sentence.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Sentence:
    """One sentence of a caption.

    Attributes:
        text: the sentence, with no white space at its ends; equal to `caption[start:end]`.
        start: index of its first character in the caption.
        end: index one past its last character.
    """

    text: str
    start: int
    end: int


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations, without their last full stop and in lower case.
# These never end a sentence.
_NEVER_FINAL = _words(
    "mr mrs ms dr prof gen col capt cpt lt sgt rev hon gov sen messrs mme mlle vs e.g eg i.e ie approx appx ca cf viz "
    "figs nos vols"
)
# These end one only before a capitalised word that often opens a sentence ("in the U.S. The flag", not "U.S. Navy").
_FINAL_BEFORE_STARTER = _words(
    "st mt ft jr sr inc ltd co corp bros ave blvd rd hwy dept univ govt assn intl natl pres rep ed ph.d bldg"
)
# These end one before any capital ("trees, etc. Birds fly"), never before a small letter or a digit.
_FINAL_BEFORE_CAPITAL = _words(
    "etc lb lbs oz cm mm km kg yd yds mi hr hrs mins secs sq cu misc incl excl esp avg max min temp alt al"
)
# Ordinary words unless a number follows ("No. 5").
_BEFORE_NUMBER = _words(
    "no fig vol ch sec p pp art est ext tel ver pt rm apt c jan feb mar apr jun jul aug sep sept oct nov dec"
)
_STARTERS = _words(
    "a an the this that these those there here it its he his she her hers they their theirs we our i my you your who "
    "what which where when while why how in on at by to from of for with without within into onto upon under "
    "underneath beneath below above over across along around about after before behind beside besides between beyond "
    "near next inside outside off against among through throughout towards toward past opposite down up as if but and "
    "or so yet not no also then thus however although though since because until some several many most much more few "
    "both each every all another other others one two three four five six seven eight nine ten only just even "
    "directly further farther closer overall additionally meanwhile everything everyone everybody nothing nobody "
    "someone something somebody is are was were has have had does do did can will would"
)
# Small-letter words that show a full stop without a space after it to be the end of a sentence, not of a host name.
_UNSPACED_STARTERS = _words("the there this these those they a an she he his her its")
_FILE_OR_HOST = _words(
    "com org net edu gov io co uk de fr jp jpg jpeg png gif pdf txt doc html htm php js py exe zip mp csv"
)
_CONTINUES = _words(
    "and or but nor of in on at by to from for with without within into onto over under above below behind beside "
    "between near next through across along around against as is are was were be been has have had which who whose "
    "that where while when than because so it's"
)
_DANGLING = _words("a an the and or but of in on at by to from for with is are was were as its his her their")

_HAS_WORD = re.compile(r"[^\W_]")
_TERMINATORS = re.compile(r"[.!?…]+|[。！？]+")
_CLOSERS = re.compile("[\"'”’)\\]»」』*]*")
_OPENERS = "\"'“‘([«「『*_-–—#"
_WORD_BEFORE = re.compile(r"(?:[^\W_]|(?<=[^\W_])[.'’](?=[^\W_]))+$")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]$")
_LINE_BREAK = re.compile(r"(?:\r\n|[\n\r\v\f\u2028\u2029\x85])\s*")
_ONE_BREAK = re.compile(r"(?:\r\n|[\n\r\u2028\x85])[ \t]*")
# A bullet or a number at the start of a line.
_LINE_MARKER = re.compile(
    r"(?:[-*+•‣●◦▪·–—]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{2,4})[.)])(?=\s)|#{1,6}\s|\d{1,2}[.)](?=\D)"
)
# What stands before a terminator when that is part of a list number: "1", "(2", "2.1", "b".
_MARKER = re.compile(r"\(?(?:\d{1,2}(?:\.\d{1,2})*|[A-Za-z]|[ivxIVX]{2,4})")
_NUMBER = re.compile(r"(?<!\S)\(?(\d{1,2})[.)](?=\s*[^\W\d])")
_UNIT = re.compile(r"[\d.,]*\d([^\W\d_]+)")
_BULLET = re.compile(r"(?<!\S)[•‣●◦▪](?=\s)")
# What quotation marks and brackets hold together. An inch mark (6") follows a digit, so it opens nothing.
_ENCLOSED = re.compile(
    r"(?<!\w)\"(?=\S)[^\"]{1,300}(?:(?<=\S)\"(?!\w)|\"(?=[\s.,;:!?)]|$))|“[^“”]{1,300}”|«[^«»]{1,300}»|「[^「」]{1,300}」"
    r"|\([^()]{1,300}\)|\[[^\[\]]{1,300}\]|(?<!\w)[‘'](?=\S)[^'‘’\"]{1,120}(?<=[.!?…])[’'](?!\w)"
)
_SPEECH_TAG = re.compile(
    r"(?:[A-Z]\w*|[Tt]he \w+)\s(?:said|says|asked|asks|shouted|shouts|cried|cries|replied|replies|yelled|yells)\b"
)


def split_sentences(caption: str) -> list[Sentence]:
    """Splits a caption into sentences with exact character spans.

    Every character that is not white space belongs to exactly one sentence. A line break ends a sentence unless the
    next line plainly goes on; a bullet or list number belongs to the sentence after it; sentences inside quotation
    marks or brackets stay with the sentence around them.

    Args:
        caption: text in English, of any length. Other languages with `.`, `!`, `?` or CJK full stops are split too,
            without knowledge of their abbreviations.

    Returns:
        The sentences in order, `caption[s.start:s.end] == s.text`; an empty list for an empty or blank caption.

    Raises:
        TypeError: if `caption` is not a string.
        ImportError: if the package sentencex is missing.
    """
    if not isinstance(caption, str):
        raise TypeError(f"`caption` must be a str, got {type(caption).__name__}: join lists of captions into one text.")
    sentences = []
    for block_start, block_end in _blocks(caption):
        block = caption[block_start:block_end]
        start = 0
        for end in [*_boundaries(block), len(block)]:
            text = block[start:end]
            stripped = text.strip()
            if stripped:
                first = block_start + start + len(text) - len(text.lstrip())
                sentences.append(Sentence(stripped, first, first + len(stripped)))
            start = end
    return sentences


def _blocks(caption: str) -> Iterator[tuple[int, int]]:
    """Spans of the caption that a line break separates, wrapped lines put together again."""
    start = line_start = 0
    for match in _LINE_BREAK.finditer(caption):
        line, rest = caption[line_start : match.start()], match.end()
        line_start = rest
        if not _goes_on(line.strip(), match.group(), caption, rest):
            yield start, match.start()
            start = rest
    yield start, len(caption)


def _goes_on(line: str, line_break: str, caption: str, rest: int) -> bool:
    """Whether the text at `rest` continues the sentence of the line before it."""
    if not line:
        return False
    if not _HAS_WORD.search(line):
        return True  # a bullet alone on its line
    marker = _LINE_MARKER.match(line + " ")
    if marker and marker.end() >= len(line):
        return True
    if not _ONE_BREAK.fullmatch(line_break) or line[-1] in ".!?…:;。！？" or _LINE_MARKER.match(caption, rest):
        return False
    following = _WORD.match(caption, rest)
    if following is None or not following.group()[0].islower():
        return False
    last_word = line.rsplit(None, 1)[-1].lower()
    return line[-1] == "," or last_word in _DANGLING or following.group() in _CONTINUES or len(line) >= 60


def _boundaries(block: str) -> list[int]:
    """Indices in a block at which a new sentence starts (leading white space included), in order."""
    terminators = list(_TERMINATORS.finditer(block))
    bullets = [m.start() for m in _BULLET.finditer(block)]
    if len(bullets) < 2:
        bullets = []
    numbers = _list_numbers(block)
    bullets += list(numbers)[1:]
    inside_numbers = set(numbers.values())
    if not terminators and not bullets:
        return []
    enclosed = [m.span() for m in _ENCLOSED.finditer(block)]
    small_letters_only = block.islower()
    proposed: set[int] | None = None
    boundaries: list[int] = []
    start = 0
    while start < len(block) and block[start].isspace():
        start += 1
    for match in terminators:
        run_start, run_end = match.span()
        if run_start < start or run_end in inside_numbers:
            continue
        end = _end_of_closers(block, run_end, enclosed)
        following = end
        while following < len(block) and block[following].isspace():
            following += 1
        if following == len(block):
            break
        if any(first < run_start and end < last for first, last in enclosed):
            continue
        decision = _decide(block, start, run_start, run_end, end, following, enclosed, small_letters_only)
        if decision is None:
            if proposed is None:
                proposed = _proposals(block)
            decision = following in proposed
        if decision:
            boundaries.append(following)
            start = following
    if bullets:
        boundaries = sorted({*boundaries, *(b for b in bullets if not any(s < b < e for s, e in enclosed))})
    kept = [0]  # bare punctuation is no sentence: it stays with the one before it, or goes to the one after it
    for boundary, last in zip(boundaries, [*boundaries[1:], len(block)], strict=False):
        if _HAS_WORD.search(block, boundary, last) and _HAS_WORD.search(block, kept[-1], boundary):
            kept.append(boundary)
    return kept[1:]


def _list_numbers(block: str) -> dict[int, int]:
    """Start and end of each number of a list in running text: "on it: 1. a cup 2. a pen"; empty if there is none."""
    numbers: dict[int, int] = {}
    for match in _NUMBER.finditer(block):
        opens = (
            block[max(match.start() - 9, 0) : match.start()].rstrip()[-1:] in ("", *".!?:;,") if not numbers else True
        )
        if opens and int(match.group(1)) == len(numbers) + 1:
            numbers[match.start()] = match.end()
    return numbers if len(numbers) > 1 else {}


def _end_of_closers(block: str, run_end: int, enclosed: list[tuple[int, int]]) -> int:
    """Index after the closing marks that follow a terminator; a mark that opens a quotation is not one of them."""
    if not enclosed and (run_end == len(block) or block[run_end].isspace() or block[run_end].isalnum()):
        return run_end
    closers = _CLOSERS.match(block, run_end)
    end = closers.end() if closers else run_end
    for first, last in enclosed:
        if run_end <= first < end:
            return first
        if end < last and first < run_end and block[run_end : last - 1].isspace():
            return last  # a space before the closing mark: "STOP! "
    return end


def _decide(
    block: str,
    start: int,
    run_start: int,
    run_end: int,
    end: int,
    following: int,
    enclosed: list[tuple[int, int]],
    small_letters_only: bool,
) -> bool | None:
    """Whether the terminator ends a sentence; None when the rules have no opinion.

    Args:
        block: the text.
        start: where the current sentence starts.
        run_start: where the run of terminators starts.
        run_end: where the run ends.
        end: where the closing marks after the run end.
        following: where the next text starts; equal to `end` when there is no space.
        enclosed: spans of quotations and brackets.
        small_letters_only: whether the block has no capital at all.
    """
    run = block[run_start:run_end]
    if run[0] in "。！？":
        return True
    head = following
    while head < len(block) and (block[head] in _OPENERS or block[head].isspace()):
        head += 1
    if head == len(block):
        return False
    next_char = block[head]
    if end == following and not next_char.isalpha():
        # "3.5", "Go!,", but also `the wall."76" is`
        return any(first == following for first, _ in enclosed) and block[run_start - 1 : run_start].isalpha()
    next_match = _WORD.match(block, head)
    next_word = next_match.group() if next_match else ""
    is_capital = next_char.isupper()
    is_starter = is_capital and next_word.lower() in _STARTERS
    before = block[max(start, run_start - 80) : run_start].rstrip()  # the rules look no further back
    quoted = end > run_end

    if run == "." and not quoted and run_start - start < 12 and _MARKER.fullmatch(before):
        return False  # a list number goes with its item
    if end == following:
        return _decide_unspaced(block, start, run_start, run, before, head, next_word, quoted)
    if quoted and _opens_sentence(start, end, enclosed) and _SPEECH_TAG.match(block, head):
        return False
    if "…" in run or ".." in run:
        return not next_char.islower()
    if run != ".":
        if next_char.islower():
            return small_letters_only and not quoted
        return True
    if quoted:
        return not next_char.islower()

    word = _last_word(before)
    verdict = _decide_abbreviation(word, before, next_char, is_capital, is_starter)
    if verdict is not None:
        return verdict
    if word.isdigit() and next_char.isdigit() and before[: -len(word)][-1:] in ("$", "€", "£", "¥"):
        return False  # "$19. 95"
    if is_starter or not word or word[-1].isdigit():
        return True
    if is_capital and len(word) > 5:
        return True
    if is_capital or next_char.isdigit():
        # A short word before a capital may be an abbreviation that only the library knows.
        return True if word.islower() or word.isupper() else None
    return True


def _last_word(before: str) -> str:
    """The word at the very end of a text, inner full stops and apostrophes included; empty if there is none."""
    token = before[-40:].rsplit(None, 1)[-1:]
    match = _WORD_BEFORE.search(token[0]) if token else None
    return match.group() if match else ""


def _decide_abbreviation(word: str, before: str, next_char: str, is_capital: bool, is_starter: bool) -> bool | None:
    """What the tables say of `word` + full stop; None when it is no abbreviation that they know."""
    lower = word.lower()
    unit = _UNIT.fullmatch(lower)
    if unit and unit.group(1) in ("in", "ft", *_FINAL_BEFORE_CAPITAL):
        return is_capital  # "5.5in. wide"
    if lower in _NEVER_FINAL:
        return False
    if lower in _BEFORE_NUMBER and next_char.isdigit():
        return False
    if lower in ("in", "ft") and before[:-2].rstrip()[-1:].isdigit():
        return is_capital  # "6 in. wide", but "Come in. The"
    if lower in _FINAL_BEFORE_STARTER:
        return is_starter
    if lower in _FINAL_BEFORE_CAPITAL:
        return is_capital
    if _DOTTED.match(lower):
        return is_starter
    if len(word) == 1 and word.isalpha():
        named = before[:-1].split()[-1:]  # "the letter F. White walls", but "by J. Smith"
        is_letter = bool(named) and named[0].lower() in ("the", "letter", "letters", "an")
        return is_starter if word.isupper() and not is_letter else is_capital
    return None


def _decide_unspaced(
    block: str, start: int, run_start: int, run: str, before: str, head: int, next_word: str, quoted: bool
) -> bool:
    """Whether a terminator with a letter right after it ends a sentence: "the wall.The dog", not "www.Example.com"."""
    token_start = max(block.rfind(" ", start, run_start) + 1, start)
    token = block[token_start:run_start]
    if "/" in token or "@" in token or "_" in token:
        return False
    if next_word[0].islower():
        after = block[head + len(next_word) : head + len(next_word) + 1]
        return (
            run == "."
            and not quoted
            and len(token) > 2
            and "." not in token
            and (next_word in _UNSPACED_STARTERS and after.isspace())
        )
    if run != ".":
        return True
    if quoted or token[-1:] in ")]\"'”’%":
        return True
    tail = block[head + len(next_word) : head + len(next_word) + 2]
    if next_word.lower() in _FILE_OR_HOST or (tail[:1] == "." and tail[1:2].isalnum()) or tail[:1] in ("@", "/", "_"):
        return False
    word = _last_word(before)
    if "." in word:
        return (
            bool(_DOTTED.match(word)) and word.islower() and next_word.lower() in _STARTERS and word not in _NEVER_FINAL
        )
    if len(word) == 1 and word.isalpha() and not before[:-1].rstrip()[-1:].isdigit():
        return False
    if next_word.isupper() and len(next_word) > 1 and word.isupper():
        return False  # "ACME.INC"
    verdict = _decide_abbreviation(word, before, next_word[0], True, next_word.lower() in _STARTERS)
    return True if verdict is None else verdict


def _opens_sentence(start: int, end: int, enclosed: list[tuple[int, int]]) -> bool:
    """Whether the quotation that ends at `end` is also the start of the sentence."""
    return any(first == start and last == end for first, last in enclosed)


@lru_cache(maxsize=1)
def _library() -> Callable[[str, str], list[dict[str, Any]]]:
    try:
        module = importlib.import_module("sentencex")
    except ImportError as error:
        raise ImportError(
            "Splitting captions into sentences needs the package sentencex: pip install sentencex"
        ) from error
    return module.get_sentence_boundaries


def _proposals(block: str) -> set[int]:
    """Where sentencex starts a new sentence in the block."""
    starts = set()
    for boundary in _library()("en", block):
        end = boundary["end_index"]
        while end < len(block) and block[end].isspace():
            end += 1
        starts.add(end)
    return starts
