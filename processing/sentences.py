"""Split long captions into sentences with exact character spans.

The library sentencex proposes where sentences start. The rules in this file correct it for captions: lists and bullets,
line breaks, unmatched quotation marks, a missing space after a period, units, and words that sentencex takes for
abbreviations although captions end sentences with them.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from sentencex import get_sentence_boundaries


@dataclass(frozen=True)
class Sentence:
    """One sentence of a caption.

    Attributes:
        text: The sentence without white space at its ends; equal to `caption[start:end]`.
        start: Index of its first character in the caption.
        end: Index after its last character.
    """

    text: str
    start: int
    end: int


# Words that start sentences but no names, besides those that sentencex knows.
_OPENERS = (
    r"(?:A|Above|Across|Along|Around|Behind|Below|Beneath|Beside|Beyond|Daytime|Directly|Further|Inside|Near|Nearby"
    r"|Outside|Overhead|Past|Surrounding|Towards?|Under|Underneath|Up|Upper)\b(?!\.)"
)
# Short words that show that a period ends a sentence although no space or no capital letter follows it.
_SMALL_OPENERS = r"(?:the|there|this|these|those|they|an?|it|he|she|his|her|its)\s"
_CAPITAL = r"(?=[\"“(]?[A-Z])"

# Matches that end where an English sentence starts, besides those that sentencex proposes. The patterns start at the
# period and look back from there, which is many times faster than trying them at every word.
_STARTS = re.compile(
    rf"""[.!?…](?:
      (?<=\.)\s+ (?=["“(]?{_OPENERS})                   # "on the left of the F. A rail", but "by A. A. Milne"
    # words that sentencex takes for abbreviations: "street art. Posters", "trees, etc. Birds"
    | (?:(?<=\b(?:al|hr|id|me|mm|no|ok)\.)|(?<=\b(?:arc|art|con|etc|ill|min|ore)\.))\s+ {_CAPITAL}
    | (?<=\d\s[ACFKLVgm]\.)\s* (?=[A-Z][a-z])          # "at 10 C. Bread", not "120 W. Main Street"
    | (?:(?<=\bof\sthe\s[A-Z]\.)|(?<=\bletter\s[A-Z]\.))\s+ (?=[A-Z][a-z])  # "on top of the U. White walls"
    | (?<=[^\W\d_]{{2}}\.)(?={_SMALL_OPENERS})          # "the wall.the dog"
    )""",
    re.VERBOSE,
)
# The same for any language: 'bound for "Main St." This', "(It is big.) He", "leads on… Then"
_UPPER = "[A-ZÀ-ÖØ-ÞĀ-ŽΑ-ΩА-Я]"
_STARTS_ANYWHERE = re.compile(
    rf"""[.!?…](?:(?:["”’')\]»*″“]+|(?<=…))\s+(?=["“„«(]?{_UPPER})|\s+(?=„{_UPPER}|«\s?{_UPPER}))"""
)
# Matches that end where no sentence starts, even if another rule proposes one.
_GOES_ON = re.compile(
    rf"""[.!?](?:
      (?:(?<=\bvs\.)|(?<=\b(?i:e\.g|i\.e|www)\.)|(?<=\b(?i:approx)\.))\s*
    | (?<=(?i:[ap]\.m)\.)\s+ (?=\w+day\b)               # "from 9 a.m. Monday"
    # units: "a 12V. supply", "5 cm. thick"
    | (?:(?<=\d[^\W\d_]\.)|(?<=\d[^\W\d_]{{2}}\.)|(?<=\d\s[^\W\d_]{{2}}\.)|(?<=\d\s(?:hrs|lbs)\.))
      \s+ (?!{_SMALL_OPENERS})(?=[a-z])
    | (?:(?<=[\s$]\d\.)|(?<=\$\d\d\.))\s (?=\d)         # "$19. 95", "1. 5 feet", but "in 1990. 3 cars"
    | (?<=["”″][!?])\s+ (?=[a-z])                        # 'the words "YOU ROCK"! are'
    )""",
    re.VERBOSE,
)
# Sentences do not end inside quotations and brackets. An inch mark (6") follows a digit and opens nothing. Single
# quotation marks count only around whole sentences, since apostrophes look like them.
_PAIRS = "|".join(
    rf"(?<={a})[^{a}{b}\n\r]{{1,300}}{b}" for a, b in ("“”", "«»", "「」", (r"\(", r"\)"), (r"\[", r"\]"))
)
_ENCLOSED = re.compile(
    rf"""["“„«「(\[‘'](?:
      (?<=")(?<!\w")(?=\S)[^"\n\r]{{1,300}}(?:(?<=\S)"(?!\w)|(?<=[.!?…])"|"(?=[\s.,;:!?)]|$))
    | {_PAIRS} | (?<=„)[^„“”\n\r]{{1,300}}[“”]
    | (?<=[‘'])(?<!\w[‘'])(?=\S)[^'‘’"\n\r]{{1,120}}(?<=[.!?…])[’'](?!\w)
    | (?<=["“])                                         # an unmatched one
    )""",
    re.VERBOSE,
)
_INNER_END = re.compile(r"[.!?…。！？؟।•‣●◦▪)](?![\W_]*$)")
_LINE_BREAK = re.compile(r"(?:\r\n|[\n\r\v\f\u2028\u2029\x85])\s*")
_WRAPPED = re.compile(r"(?:\r\n|[\n\r\u2028\x85])[ \t]*")
_WRAPPED_WORD = re.compile(
    r"(?:and|or|but|of|in|on|at|by|to|from|for|with|into|over|under|above|below|behind|beside|between|near|through"
    r"|across|along|around|against|as|is|are|was|were|has|have|which|who|that|where|while)\b"
)
_BULLET = re.compile(r"(?<!\S)[•‣●◦▪](?=\s)")
_NUMBER = re.compile(r"(?<!\S)\(?(\d{1,2})[.)]\s*(?=[^\W\d])")
_ENUMERATED = re.compile(r"(?:,|\b(?:and|or))$")
_AFTER_ITEM = re.compile(r"(?:[.!?:;,][\"”)]?|\b(?:and|or))$")
# Numbers that belong to the words around them and not to a list: "the first shows 1. The second", "for number 2."
_NO_LIST = re.compile(
    rf"\d[.)]\s*(?i:{_SMALL_OPENERS})|\b(?:number|at|by|for|from|in|is|are|of|on|than|to|shows|reads)\s\d"
)
_MARKER = re.compile(r"\s*\(?(?:\d{1,3}(?:\.\d{1,2})*|[A-Za-z]|[ivxIVX]{2,4})[.)]*\s*")
_HAS_WORD = re.compile(r"[^\W_]")
# Replacements for sentencex, which takes a line with a bullet for one sentence, and searches the rest of the text again
# and again for the partner of some quotation marks.
_ONE_LINE = str.maketrans("\n\r\v\f\x85\u2028\u2029•‣●◦▪‘‹«»„", '       -----\'\'"""')
_FRENCH = re.compile(r"«(?=\s)|(?<=\s)»")  # sentencex takes the opening mark for the end of a sentence
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")
_GAP = re.compile(r"(?:[\"”’')\]»*″]+(?=\s))?\s*")  # closing marks after the boundary, and white space


def check_language(language: str) -> str:
    """Return a language code such as `de` or `zh`, or raise `ValueError` if it is not one."""
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise ValueError(f"`language` must be a language code such as en, de, fr, zh or ar, got {language!r}.")
    return language


def split_sentences(caption: str, language: str = "en") -> list[Sentence]:
    """Split a caption into sentences with exact character spans.

        for sentence in split_sentences("A brown dog. A red ball lies next to it."):
            print(sentence.start, sentence.end, sentence.text)

    Every character that is not white space belongs to exactly one sentence. A line break ends a sentence unless the
    next line clearly continues it. A bullet or list number belongs to the sentence after it. Sentences inside quotation
    marks or brackets belong to the sentence around them.

    Args:
        caption: Text of any length.
        language: Its ISO 639 language code (`de`, `zh`, `pt-BR`). sentencex knows the abbreviations and sentence ends
            of some 300 languages, and uses a related one for the others. The rules for captions are for English.

    Returns:
        The sentences in order; an empty list for an empty or blank caption.

    Raises:
        TypeError: `caption` is not a string.
        ValueError: `language` is not a language code.
    """
    check_language(language)
    if not isinstance(caption, str):
        raise TypeError(f"`caption` must be a str, got {type(caption).__name__}: join lists of captions into one text.")
    sentences = []
    for start, end in pairwise([*_sentence_starts(caption, language), len(caption)]):
        text = caption[start:end]
        stripped = text.strip()
        if stripped:
            first = start + len(text) - len(text.lstrip())
            sentences.append(Sentence(stripped, first, first + len(stripped)))
    return sentences


def _sentence_starts(caption: str, language: str) -> list[int]:
    """Return the indices at which sentences start; the first is 0."""
    text = _ENCLOSED.sub(_hide, caption)  # of the same length
    items, inside = _list_items(text)
    proposed = _proposals(text, language) | {match.end() for match in _STARTS_ANYWHERE.finditer(text)}
    if language.partition("-")[0] == "en":
        proposed |= {match.end() for match in _STARTS.finditer(text)}
    refused = inside | {match.end() for match in _GOES_ON.finditer(text)}
    candidates = sorted((proposed - refused) | items | _line_starts(text))
    # Punctuation without words belongs to the sentence before it, and a list number to the one after it.
    starts, complete = [0], False
    for start, end in pairwise([0, *candidates, len(text)]):
        if not _HAS_WORD.search(text, start, end):
            continue
        if complete:
            starts.append(start)
        complete = not _MARKER.fullmatch(text, start, end)
    return starts


def _hide(match: re.Match[str]) -> str:
    """Return an enclosed text without the characters that could end a sentence before its closing mark."""
    enclosed = match.group()
    if enclosed[0] == "„" and len(enclosed) > 1:  # its partner is an opening mark in other languages
        enclosed = f"“{enclosed[1:-1]}”"
    return _INNER_END.sub(",", enclosed[:-1]) + enclosed[-1] if len(enclosed) > 1 else "″"


def _line_starts(text: str) -> set[int]:
    """Return the starts of lines that do not continue the sentence of the line before them."""
    starts, line_start = set(), 0
    for match in _LINE_BREAK.finditer(text):
        line, next_start = text[line_start : match.start()].rstrip(), match.end()
        line_start = next_start
        wrapped = (
            _WRAPPED.fullmatch(match.group())
            and line
            and line[-1] not in ".!?…:;。！？؟।"
            and text[next_start : next_start + 1].islower()
            and (line[-1] == "," or len(line) >= 60 or _WRAPPED_WORD.match(text, next_start))
        )
        if not wrapped:
            starts.add(next_start)
    return starts


def _list_items(text: str) -> tuple[set[int], set[int]]:
    """Return the starts of list items in running text, and the positions after their numbers, where none starts.

    Numbers that count up from 1 are a list: "on it: 1. a cup 2. a pen". Items after a comma or "and" are part of one
    sentence: "there are 1. a cup, 2. a pen, and 3. a book".
    """
    items = {match.start() for match in _BULLET.finditer(text)}
    if len(items) == 1:
        items = set()
    numbers: list[re.Match[str]] = []
    for match in _NUMBER.finditer(text):
        if int(match.group(1)) == len(numbers) + 1:
            numbers.append(match)
    before = [text[max(match.start() - 9, 0) : match.start()].rstrip() for match in numbers]
    if len(numbers) > 1 and (
        before[0][-1:] in ("", *".!?:;,")
        or all(_AFTER_ITEM.search(words) for words in before[1:])
        or not _NO_LIST.search(text, numbers[0].start(), numbers[-1].end() + 9)
    ):
        pairs = zip(numbers[1:], before[1:], strict=True)
        items |= {match.start() for match, words in pairs if not _ENUMERATED.search(words)}
        return items, {match.end() for match in numbers}
    return items, set()


def _proposals(text: str, language: str) -> set[int]:
    """Return where sentencex starts new sentences."""
    # The text follows a word, since a bullet or number at the start would make all of it one sentence.
    line = "x " + _FRENCH.sub(",", text).translate(_ONE_LINE)
    ends = [boundary["end_index"] for boundary in get_sentence_boundaries(language, line)]
    return {gap.end() - 2 for end in ends if (gap := _GAP.match(line, end))}
