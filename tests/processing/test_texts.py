"""Unpaired surrogates are found, wherever a text comes from."""

import pytest

from fastgoal import FastGoalProcessor
from fastgoal.processing.texts import check_texts, is_unicode


def test_unpaired_surrogates():
    assert is_unicode("a 🦊 红 \0")
    assert not is_unicode("half \ud800")
    check_texts(["a", "🦊"])
    with pytest.raises(ValueError, match=r"Text 1 .*unpaired surrogate.*'b .*ud800"):
        check_texts(["a", "b \ud800"])


def test_the_processor_names_them(tiny_clip):
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    for text in ("\udc00", ["a", "\udc00"]):
        with pytest.raises(ValueError, match="unpaired surrogate"):
            processor(text=text)
