"""Halves of characters are found, wherever a text comes from."""

import pytest

from fastgoal import FastGoalProcessor
from fastgoal.processing.texts import check_texts, is_unicode


def test_halves_of_characters():
    assert is_unicode("a 🦊 红 \0")
    assert not is_unicode("half \ud800")
    check_texts(["a", "🦊"])
    with pytest.raises(ValueError, match=r"text 1 is no valid Unicode, it holds half of a character: 'b .*ud800"):
        check_texts(["a", "b \ud800"])


def test_the_processor_names_them(tiny_clip):
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    for text in ("\udc00", ["a", "\udc00"]):
        with pytest.raises(ValueError, match="is no valid Unicode"):
            processor(text=text)
