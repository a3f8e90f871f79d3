"""The processor: CLIP's inputs, and masks of sentences and regions."""

import json
import shutil
import string

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from fastgoal import FastGoalProcessor
from tests.tiny_models import make_metaclip2

CAPTION = "A red cup stands on a table. Behind it, a dog sleeps.  The wall is white."
SPANS = [(0, 28), (29, 54), (56, 73)]


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(str(tiny_clip))


def image(size=(64, 48), color="black"):
    return Image.new("RGB", size, color)


def test_inputs_are_those_of_clip(processor, tiny_clip):
    plain = CLIPProcessor.from_pretrained(tiny_clip)
    expected = plain(images=[image()], text=["a cup"], return_tensors="pt", padding=True)
    got = processor(images=[image()], text=["a cup"])
    assert set(got) == {"input_ids", "attention_mask", "pixel_values"}
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


@pytest.mark.parametrize(
    ("options", "at_load"),
    [
        ({"text_kwargs": {"padding": "max_length", "max_length": 50}}, {}),
        ({"padding": "max_length", "max_length": 50}, {"padding": "longest"}),
        ({}, {"padding": "max_length", "max_length": 50}),
        ({"text_kwargs": {"max_length": 5}, "common_kwargs": {"return_tensors": "np"}}, {}),
        ({"common_kwargs": {"return_tensors": "np"}, "images_kwargs": {"do_normalize": False}}, {}),
        ({"return_tensors": "np", "do_rescale": False}, {}),
        ({"truncation": False}, {}),
    ],
)
def test_options_are_those_of_clip_in_every_form(tiny_clip, options, at_load):
    ours, plain = FastGoalProcessor.from_base(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    ours.tokenizer = plain.tokenizer = AutoTokenizer.from_pretrained(tiny_clip, **at_load)
    inputs = {"images": [image(color="red")], "text": ["a cup", "a red cup stands there"]}
    asked = {**options.get("text_kwargs", {}), **options.get("common_kwargs", {}), **at_load, **options}
    defaults = {"padding": True, "truncation": True, "return_tensors": "pt"}
    expected = plain(**inputs, **options, **{name: value for name, value in defaults.items() if name not in asked})
    got = ours(**inputs, **options)
    assert set(got) == set(expected)
    for name in expected:
        assert type(got[name]) is type(expected[name])
        assert (got[name] == expected[name]).all()
        assert got[name].shape == expected[name].shape


def test_an_option_given_twice_is_refused(processor):
    with pytest.raises(ValueError, match="max_length was passed two times"):
        processor(text="a cup", max_length=5, text_kwargs={"max_length": 6})


def test_lists_are_those_of_the_tokenizer(processor):
    for text in ("a cup", ["a cup", "a red dog"]):
        assert dict(processor(text=text, padding=False, return_tensors=None)) == dict(processor.tokenizer(text))


def test_single_image_and_text(processor):
    got = processor(images=image(), text="a cup")
    assert got["pixel_values"].shape == (1, 3, 32, 32)
    assert got["input_ids"].shape[0] == 1


def test_files_are_images(processor, tmp_path):
    image(color="red").save(tmp_path / "a.png")
    expected = processor(images=image(color="red"))["pixel_values"]
    for name in (tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        assert torch.equal(processor(images=name)["pixel_values"], expected)


def test_rotated_images_are_turned_upright(processor):
    upright = Image.new("RGB", (48, 64), "black")
    ImageDraw.Draw(upright).rectangle((0, 0, 47, 9), fill="white")
    turned = upright.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # "turn me by 90 degrees to the right"
    expected = processor(images=upright)["pixel_values"]
    torch.testing.assert_close(processor(images=turned)["pixel_values"], expected)


def test_long_captions_are_cut_with_one_warning(processor, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("fastgoal"), "propagate", True)
    texts = ["x y " * 200, "short", "z" * 600]
    with caplog.at_level("WARNING"):
        got = processor(text=texts)
        processor(text=texts, text_kwargs={"max_length": 5})
        processor(text=texts, text_kwargs={"truncation": False})
    assert got["input_ids"].shape == (3, 248)
    messages = [record.getMessage() for record in caplog.records if "captions" in record.getMessage()]
    assert messages == [
        "2 of 3 captions have more than 248 tokens and were truncated.",
        "3 of 3 captions have more than 5 tokens and were truncated.",
    ]


def test_nothing_to_process_is_an_error(processor):
    with pytest.raises(ValueError, match="images"):
        processor()


@pytest.mark.parametrize("length", [76, 1025])
def test_lengths_out_of_range(tiny_clip, length):
    with pytest.raises(ValueError, match=r"from 77.* to 1024"):
        FastGoalProcessor.from_base(str(tiny_clip), length)


def test_a_saved_folder_loads_as_ours_and_as_clip(processor, tmp_path):
    processor.detector = object()
    try:
        processor.save_pretrained(tmp_path)
    finally:
        processor.detector = None
    ours = FastGoalProcessor.from_pretrained(tmp_path)
    assert ours.to_dict() == processor.to_dict()
    assert (ours.patch_size, ours.tokenizer.model_max_length, ours.detector) == (8, 248, None)
    plain = CLIPProcessor.from_pretrained(tmp_path)
    assert plain.tokenizer.model_max_length == 248
    assert torch.equal(plain(text=CAPTION, return_tensors="pt")["input_ids"], ours(text=CAPTION)["input_ids"])


def test_region_mask_needs_the_patch_size(processor):
    plain = FastGoalProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="from_base"):
        plain.region_mask((0, 0, 5, 5), (10, 10))


def test_region_mask_goes_through_the_crop(processor):
    # 64 x 32: the crop of the middle 32 columns.
    assert processor.region_mask((16, 0, 24, 8), (64, 32)).nonzero().flatten().tolist() == [0]
    assert not processor.region_mask((0, 0, 16, 32), (64, 32)).any()


def test_a_sentence_mask_covers_the_letters_of_the_sentence(processor):
    ids = processor(text=CAPTION)["input_ids"][0]
    for start, end in SPANS:
        mask = processor.sentence_mask(CAPTION, start, end)
        assert mask.shape == ids.shape
        assert mask.dtype == torch.bool
        got = processor.tokenizer.decode(ids[mask]).replace(" ", "")
        assert got == CAPTION[start:end].lower().replace(" ", "")
    assert not mask[0]
    assert not mask[-1]


def test_sentence_cut_off_by_truncation_has_no_tokens(processor):
    caption = "a" * 250 + ". The end."
    start = caption.index("The")
    assert not processor.sentence_mask(caption, start, len(caption)).any()
    assert processor.sentence_mask(caption, 0, 251).sum() == 246  # all but BOS and EOS


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (3, 3), (5, 2), (0, 100)])
def test_spans_out_of_range(processor, start, end):
    with pytest.raises(ValueError, match="span of the 5 characters"):
        processor.sentence_mask("abcde", start, end)


def test_a_mask_ends_where_its_sentence_ends(processor):
    """Sentences that touch: a mask that was one character wide of either end would take of the neighbor."""
    caption = "It is red.Now it is green.End"
    spans = [(0, 10), (10, 26), (26, 29)]
    masks = processor.sentence_masks(caption, spans)
    ids = processor(text=caption)["input_ids"][0]
    for (start, end), mask in zip(spans, masks, strict=True):
        got = processor.tokenizer.decode(ids[mask]).replace(" ", "")
        assert got == caption[start:end].lower().replace(" ", "")
    assert masks.sum(dim=0)[1:-1].eq(1).all()


words = st.text(alphabet=string.ascii_letters + "éßñÅ漢7,'-", min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    sentences=st.lists(st.lists(words, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12),
    gap=st.sampled_from([" ", "  ", "\n", "\t "]),
)
def test_masks_of_all_sentences_partition_the_caption(processor, sentences, gap):
    caption, spans = "", []
    for sentence in sentences:
        spans.append((len(caption), len(caption) + len(sentence) + 1))
        caption += sentence + "." + gap
    masks = processor.sentence_masks(caption, spans)
    ids = processor.tokenizer(caption, truncation=True)["input_ids"]
    assert masks.shape == (len(spans), len(ids))
    covered = masks.sum(dim=0)
    assert covered[0] == 0
    assert covered[-1] == 0
    assert (covered[1:-1] == 1).all()
    # A sentence's tokens are those it has by itself, as far as the caption was not cut.
    for (start, end), mask in zip(spans, masks, strict=True):
        alone = processor.tokenizer(caption[start:end])["input_ids"][1:-1]
        kept = [token for token, inside in zip(ids, mask.tolist(), strict=True) if inside]
        assert kept == alone[: len(kept)]
        assert len(kept) == len(alone) or len(ids) == 248


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>"])
def test_a_caption_that_holds_a_special_token_does_not_end_there(tiny_clip, tmp_path, token):
    made = FastGoalProcessor.from_base(str(tiny_clip))
    made.save_pretrained(tmp_path)
    caption = f"A cup. {token} A spoon."
    for processor in (made, FastGoalProcessor.from_pretrained(tmp_path)):
        ids = processor(text=caption)["input_ids"][0].tolist()
        tokenizer = processor.tokenizer
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & {*ids[1:-1]}
        start = caption.index("A spoon")
        mask = processor.sentence_mask(caption, start, len(caption))
        assert mask.sum() == len(tokenizer("A spoon.")["input_ids"]) - 2
        assert mask.tolist().index(True) > len(ids) // 2


def test_older_programs_find_their_files(tiny_clip, tmp_path):
    """An image processor and a tokenizer that find nothing but these files give the same pixels and ids."""
    (tmp_path / "alone").mkdir()
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    for folder in (tmp_path / "first", tmp_path / "again"):
        processor.save_pretrained(folder)
        processor = FastGoalProcessor.from_pretrained(folder)
        for name in ("preprocessor_config.json", "vocab.json", "merges.txt"):
            shutil.copy(folder / name, tmp_path / "alone" / name)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert "auto_map" not in settings
        assert settings["crop_size"] == {"height": 32, "width": 32}
        assert json.loads((folder / "vocab.json").read_text())["<|endoftext|>"] == 513
        assert (folder / "merges.txt").read_text().splitlines() == ["#version: 0.2"]
        picture = Image.radial_gradient("L").convert("RGB").resize((60, 40))
        images = CLIPImageProcessor.from_pretrained(tmp_path / "alone")
        pixels = images(picture, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, processor(images=picture)["pixel_values"])
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "alone")
        assert tokenizer("A cup. Überall!")["input_ids"] == processor(text="A cup. Überall!")["input_ids"][0].tolist()


def test_the_vocabulary_of_another_family_stays_in_the_folder(tmp_path):
    base = make_metaclip2(tmp_path / "base")
    (base / "sentencepiece.bpe.model").write_bytes(b"a vocabulary")
    FastGoalProcessor.from_base(str(base)).save_pretrained(tmp_path / "first")
    FastGoalProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "again")
    again = FastGoalProcessor.from_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "sentencepiece.bpe.model").read_bytes() == b"a vocabulary"
    assert not (tmp_path / "again" / "vocab.json").exists()


def test_a_folder_without_tokens_is_refused(tiny_clip, tmp_path):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    for path in [path for path in folder.iterdir() if path.name.startswith(("tok", "voc", "mer"))]:
        path.unlink()
    with pytest.raises(ValueError, match=r"no tokens: tokenizer.json, or vocab.json"):
        FastGoalProcessor.from_base(str(folder))


def test_no_code_is_run(tiny_clip, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}})
    )
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asked"))
    with pytest.raises(ValueError, match=r"trust_remote_code|evil"):
        FastGoalProcessor.from_base(str(folder))
