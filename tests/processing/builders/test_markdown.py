"""Captions that a model formatted as Markdown; mistune is the second parser."""

import re

import mistune
import pytest

from fastgoal.processing.builders.markdown import without_markdown
from fastgoal.processing.sentences import split_sentences

ANSWER = """\
### Image description

**Foreground:**
- a brown dog (*left*)
- A red ball.

**Background**

1. a lake with `calm` water
2. [a mountain](http://example.org/m)

---
The sky is
__very__ blue."""
SENTENCES = [
    "Image description.",
    "Foreground: a brown dog (left).",
    "A red ball.",
    "Background.",
    "A lake with calm water.",
    "A mountain.",
    "The sky is very blue.",
]


def test_headings_lists_and_emphasis_become_plain_sentences():
    text = without_markdown(ANSWER)
    assert text == " ".join(SENTENCES)
    assert [sentence.text for sentence in split_sentences(text)] == SENTENCES


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A **brown dog** runs. _It_ is ~~not~~ fast.", "A brown dog runs. It is not fast."),
        ("```markdown\n# A dog\nIt runs.\n```", "A dog. It runs."),
        ("````\n```\n**A** dog.\n```\n````", "**A** dog."),  # the content of a fence in a fence stays as it is
        ("| thing | color |\n|---|---|\n| dog | brown |\n| | red |", "Thing, color. Dog, brown. Red."),
        ('> A sign says **"Stop!"**\n> in the rain', 'A sign says "Stop!" in the rain.'),
        ("画像には**犬**がいます。", "画像には犬がいます。"),
        ("***", ""),
    ],
)
def test_markdown(caption, text):
    assert without_markdown(caption) == text


@pytest.mark.parametrize(
    "caption",
    [
        "A dog.\nIt runs.\n\nA lake.",
        "    Indented.\n\n      More.",
        "A * between 5 * 3 and snake_case_name, <3 &amp; <b>, C:\\new\\*.",
        "[Sign]: STOP",
        "• A dog.\n• A ball.",
        "#1 in the world. 1.5 m long.",
        "",
    ],
)
def test_a_plain_caption_is_unchanged(caption):
    assert without_markdown(caption) == caption


def test_all_words_stay():
    table = "| a thing | color |\n|---|---|\n| dog | brown |"
    caption = f"{ANSWER}\n\n{table}\n\n```\nA fence.\n```\n\n> A quote, **bold and _both_**."
    html = mistune.create_markdown(plugins=["table", "strikethrough"])(caption)
    words = re.findall(r"\w+", re.sub(r"<[^>]+>", " ", html).lower())
    assert re.findall(r"\w+", without_markdown(caption).lower()) == words
    assert len(words) > 30
