"""Load the written files with tokenizers and transformers, and compare them with the tokenizer that they come from."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from fastgoal import FastGoalProcessor
from fastgoal.export.tokenizer_json import write_tokenizer

CHARACTERS = st.text(st.sampled_from([*string.ascii_letters, *string.punctuation, *" 019\t\n", *"éÄß犬▁\u00a0"]))
SPECIAL = st.sampled_from(["</s>", "<|endoftext|>", "<unk>", "<pad>", "<mask>", "<eos>", "the red dog", " "])


@pytest.fixture(scope="module")
def pairs_of_tokenizers(tiny_bases, tmp_path_factory):
    """Each family's tokenizer, and the one that `tokenizers` makes of the written file."""
    found = {}
    for family, base in tiny_bases.items():
        folder = tmp_path_factory.mktemp(family)
        tokenizer = FastGoalProcessor.from_base(str(base)).tokenizer
        tokenizer(["two texts", "that set truncation and padding in the core"], truncation=True, padding=True)
        write_tokenizer(folder, tokenizer, 99)
        found[family] = tokenizer, Tokenizer.from_file(str(folder / "tokenizer.json")), folder
    return found


@settings(max_examples=150)
@given(text=st.lists(CHARACTERS | SPECIAL, max_size=8).map("".join))
def test_the_ids_are_those_of_the_tokenizer(pairs_of_tokenizers, text):
    for family, (tokenizer, written, _) in pairs_of_tokenizers.items():
        assert written.encode(text).ids == tokenizer(text)["input_ids"], family


def test_the_settings(pairs_of_tokenizers):
    for tokenizer, _, folder in pairs_of_tokenizers.values():
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == 99
        assert settings["eos_token"] == tokenizer.eos_token
        assert not {"auto_map", "processor_class"} & settings.keys()
        again = AutoTokenizer.from_pretrained(folder)
        assert again("a red dog")["input_ids"] == tokenizer("a red dog")["input_ids"]
