"""Tokens counted by hand: the tiny tokenizer has one for every character but spaces, and one at either end."""

import pytest
from transformers import AutoTokenizer

from fastgoal.processing.data.tokens import USUAL_TOKENIZERS, TokenCounter, find_counter, fitting_length

CAPTIONS = ["A red cup.", "A " + "very " * 60 + "long road. It ends.", ""]


def test_tokens_are_those_counted_by_hand(tiny_clip):
    counter = TokenCounter(str(tiny_clip))
    assert counter.name == str(tiny_clip)
    assert counter(CAPTIONS) == [len(caption.replace(" ", "")) + 2 for caption in CAPTIONS]


@pytest.mark.parametrize(
    ("lengths", "share", "expected"),
    [
        *(([5], 0.99, 8), ([248], 0.99, 248), ([249], 0.99, 256), ([9, 1], 1.0, 16)),
        *(([*range(1, 101)], 0.99, 104), ([*range(1, 201)], 0.5, 104)),
        *(([8] * 99 + [1000], 0.99, 8), ([8] * 98 + [1000] * 2, 0.99, 1000), ([8] * 148 + [1000] * 2, 0.99, 1000)),
    ],
)
def test_the_length_that_holds_a_share(lengths, share, expected):
    assert fitting_length(lengths, share) == expected
    assert sum(length <= expected for length in lengths) >= share * len(lengths)


def test_ends_of_what_is_read(tiny_clip):
    counter = TokenCounter(str(tiny_clip))
    assert counter.ends(CAPTIONS[0]) == []
    ends = counter.ends(CAPTIONS[1])
    assert [limit for limit, _ in ends] == [77, 248]
    for limit, end in ends:
        assert len(CAPTIONS[1][:end].replace(" ", "")) == limit - 2
        assert CAPTIONS[1][end - 1] != " "


def test_the_given_tokenizer_or_a_likely_one(tiny_clip, monkeypatch, tmp_path):
    assert find_counter("none", {}) is None
    assert find_counter(str(tiny_clip), {}).name == str(tiny_clip)
    with pytest.raises(ValueError, match=r"`tokenizer=.*absent` cannot be loaded.*`tokenizer=none`"):
        find_counter(str(tmp_path / "absent"), {})

    load, asked, here = AutoTokenizer.from_pretrained, [], set()

    def load_what_is_here(name, local_files_only, trust_remote_code):
        assert not trust_remote_code
        assert local_files_only  # what nobody asked for is not worth the network
        asked.append(name)
        if name not in here:
            raise OSError(f"{name} is not here")
        return load(tiny_clip)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_what_is_here)
    manifest = {"settings": {"model": "owner/clip@f00"}}
    assert find_counter(None, manifest) is None
    assert asked == ["owner/clip", *USUAL_TOKENIZERS]
    asked.clear()
    for local in ({}, {"settings": None}, {"settings": {"model": "clip-b16#0123"}}):
        assert find_counter(None, local) is None
    assert asked == [*USUAL_TOKENIZERS] * 3
    here.add(USUAL_TOKENIZERS[1])
    assert find_counter(None, manifest).name == USUAL_TOKENIZERS[1]
    here.add("owner/clip")
    assert find_counter(None, manifest).name == "owner/clip"
