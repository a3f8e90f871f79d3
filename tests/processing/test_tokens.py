"""Token ids and the spans of tokens, against the tokenizers themselves."""

import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizerFast

from fastgoal.processing.tokens import _surfaces, count_truncated, pad_ids, padding_of, span_masks, tokens_with_spans

TEXTS = ["A red dog. The cat sits, near!", "x", "", "...", "  two  birds\n fly ▁ over", "İstanbul ﬁne 😀 House."]


@pytest.fixture(params=["clip", "metaclip2", "siglip", "siglip2"], scope="module")
def tokenizer(request, tiny_bases):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bases[request.param])
    tokenizer.split_special_tokens = True
    return tokenizer


def test_ids_and_padding_are_those_of_the_tokenizer(tokenizer):
    made = tokens_with_spans(tokenizer, TEXTS)
    assert made["input_ids"] == tokenizer(TEXTS, truncation=True)["input_ids"]
    for ids, spans, special in zip(made["input_ids"], made["offset_mapping"], made["special_tokens_mask"], strict=True):
        assert len(ids) == len(spans) == len(special)
        assert special[-1] == 1
    padded = pad_ids(tokenizer, made["input_ids"])
    expected = tokenizer(TEXTS, truncation=True, padding=padding_of(tokenizer), return_tensors="pt")
    assert padded.keys() == expected.keys()
    assert all(torch.equal(padded[name], expected[name]) for name in expected)
    assert padding_of(tokenizer) == (True if "attention_mask" in expected else "max_length")


def test_tokens_of_a_sentence_are_those_of_its_text(tokenizer):
    caption = "A red dog stands. The cat sits under the sofa, near a house! Two birds."
    spans = [(0, 17), (18, 60), (61, 71)]
    made = tokens_with_spans(tokenizer, [caption], truncation=False)
    offsets, special = (torch.tensor(made[name][0]) for name in ("offset_mapping", "special_tokens_mask"))
    masks = span_masks(caption, spans, offsets, special)
    assert masks.sum(dim=0).max() == 1
    for (start, end), mask in zip(spans, masks, strict=True):
        ids = [token for token, inside in zip(made["input_ids"][0], mask.tolist(), strict=True) if inside]
        alone = tokens_with_spans(tokenizer, [caption[start:end]])
        words = [t for t, s in zip(alone["input_ids"][0], alone["special_tokens_mask"][0], strict=True) if not s]
        assert tokenizer.decode(ids).strip() == tokenizer.decode(words).strip()


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_spans_of_siglip_are_in_order(siglip, text):
    """Whatever a text holds: a place for every token, in order, and pieces that are those of the ids."""
    made = tokens_with_spans(siglip, [text])
    ids, spans = made["input_ids"][0], made["offset_mapping"][0][:-1]
    assert len(ids) == len(spans) + 1
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    canonical = siglip.canonicalize_text("▁" + text.replace("▁", " "))
    surfaces = _surfaces(siglip.sp_model, siglip.unk_token + canonical)
    assert (siglip.unk_token + canonical).startswith("".join(surfaces))
    assert len(surfaces) - siglip.unk_token_length == len(spans)


@pytest.fixture(scope="module")
def siglip(tiny_bases):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bases["siglip"], model_max_length=512)
    tokenizer.split_special_tokens = True
    return tokenizer


def test_spans_cover_their_letters(siglip):
    text = "A RED, dog? (wide)"
    made = tokens_with_spans(siglip, [text])
    shown = "".join(text[start:end] for start, end in made["offset_mapping"][0])
    assert shown == "A RED dog wide"


def test_truncated_texts_are_counted(tokenizer):
    # In the byte-level BPE of CLIP, each of the last two has more tokens than its other normalized form has bytes.
    texts = ["a" * 100, "a", "ﷺ" * 3, "a " * 80, "ﬁ" * 21, "İ" * 21]
    ids = tokenizer(texts)["input_ids"]
    for limit in (3, 10, 63, 64):
        assert count_truncated(texts, tokenizer, limit) == sum(len(row) > limit for row in ids)


def test_other_slow_tokenizers_are_refused(tmp_path):
    class Slow(BertTokenizerFast):
        is_fast = False

    with pytest.raises(ValueError, match="A Slow does not know the spans"):
        tokens_with_spans(Slow(vocab={"[UNK]": 0, "a": 1}), ["a"])


@pytest.mark.parametrize(
    ("lengths", "are_short", "padded"), [((3, 64), True, 64), ((3, 65), True, 256), ((3,), False, 256)]
)
@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_short_texts_of_siglip_are_padded_to_64_tokens(family, lengths, are_short, padded, tiny_bases):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bases[family], model_max_length=256)
    ids = pad_ids(tokenizer, [[7] * length for length in lengths], are_short)["input_ids"]
    assert ids.tolist() == [[7] * length + [tokenizer.pad_token_id] * (padded - length) for length in lengths]


@pytest.mark.parametrize("mark", string.punctuation)
def test_spans_of_siglip_skip_each_punctuation_mark(mark, siglip):
    """The tokenizer removes it, so that the word is one text with the mark in its middle."""
    text = f"red{mark} dog{mark}"
    made = tokens_with_spans(siglip, [text])
    assert made["input_ids"] == siglip(["red dog"])["input_ids"]
    covered = [text[start:end] for start, end in made["offset_mapping"][0] if end > start]
    assert "".join(covered) == "red dog"
    assert siglip.canonicalize_text(text) == "red dog"
