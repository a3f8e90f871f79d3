"""Captions of a tiny model: the same in a batch and alone, cut at whole sentences, and clear errors."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from fastgoal.processing.builders.captioner import PROMPT, Caption, Captioner, whole_sentences

DICE = np.random.default_rng(0)
IMAGES = [Image.fromarray(DICE.integers(0, 256, (64 - 4 * i, 40 + 8 * i, 3), dtype=np.uint8)) for i in range(6)]
IMAGES += [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def captioner(tiny_vlm):
    return Captioner.load(str(tiny_vlm), max_new_tokens=24)


def test_captions_do_not_depend_on_the_batch(captioner):
    padding = (captioner._inputs(IMAGES)["attention_mask"] == 0).sum(dim=1).tolist()
    assert min(padding) == 0 < max(padding)
    together = captioner(IMAGES)
    assert together == [captioner([image])[0] for image in IMAGES]
    assert len({caption.text for caption in together}) > 4
    assert {caption.finish for caption in together} == {"stop", "length"}
    assert captioner(IMAGES[::-1]) == together[::-1]

    captioner.processor.tokenizer.padding_side = "right"
    try:
        assert captioner(IMAGES) != together, "this test could not tell left from right"
    finally:
        captioner.processor.tokenizer.padding_side = "left"


def test_captions_equal_those_of_transformers(captioner, tiny_vlm):
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    for image in IMAGES[:4]:
        conversation = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]}
        ]
        inputs = captioner.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = inputs["input_ids"][0].tolist()
        written = []
        # Step by step and without a cache: the likeliest next token.
        for _ in range(24):
            with torch.no_grad():
                logits = model(**{**inputs, **extended(inputs, written)}).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == model.generation_config.eos_token_id:
                break
        text = captioner.processor.tokenizer.decode(written, skip_special_tokens=True)
        assert len(ids) > 100
        (caption,) = captioner([image])
        assert caption.text == (text if caption.finish == "stop" else whole_sentences(text))


def extended(inputs, written):
    more = torch.tensor([written], dtype=torch.long)
    ones = torch.ones_like(more)
    return {
        "input_ids": torch.cat([inputs["input_ids"], more], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], ones], dim=1),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], 0 * ones], dim=1),
    }


def test_without_a_chat_template_the_plain_prompt_follows_the_image(tiny_vlm):
    captioner = Captioner.load(str(tiny_vlm), prompt="the red cup", max_new_tokens=8)
    captioner.processor.chat_template = None
    ids = captioner._inputs(IMAGES[:1])["input_ids"][0]
    image = captioner.processor.image_token_id
    assert (ids == image).sum() > 1
    assert captioner.processor.tokenizer.decode(ids[ids != image]) == "the red cup"
    assert captioner(IMAGES) == [captioner([image])[0] for image in IMAGES]
    own = Captioner(captioner.model, captioner.processor, f"grey {captioner.processor.image_token} sky", 8)
    ids = own._inputs(IMAGES[:1])["input_ids"][0]
    assert captioner.processor.tokenizer.decode([ids[0], ids[-1]]) == "grey sky"


def test_sampling_follows_its_seed(captioner, tiny_vlm):
    sampler = Captioner.load(str(tiny_vlm), max_new_tokens=24, temperature=1.5, top_p=0.9)
    once = sampler(IMAGES, seed=3)
    assert sampler(IMAGES, seed=3) == once
    assert sampler(IMAGES, seed=4) != once
    assert captioner(IMAGES, seed=3) == captioner(IMAGES, seed=4)


def test_settings_of_the_checkpoint_do_not_make_it_sample(tiny_vlm, captioner):
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, top_k=3, num_beams=2, max_length=2)
    assert Captioner(model, captioner.processor, max_new_tokens=24)(IMAGES) == captioner(IMAGES)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A dog runs. It is brown. Behind it there is a la", "A dog runs. It is brown."),
        ('A dog runs. The sign says "stop."', 'A dog runs. The sign says "stop."'),
        ("A dog runs. It is 3.5", "A dog runs."),
        ("A dog that runs and", "A dog that runs and"),
        ("First paragraph.\n\nSecond one is not", "First paragraph."),
        ("", ""),
    ],
)
def test_whole_sentences(text, kept):
    assert whole_sentences(text) == kept


def test_at_the_limit_the_last_whole_sentence_ends_it(captioner, monkeypatch):
    tokenizer = captioner.processor.tokenizer
    end = tokenizer.eos_token_id
    words = ["a", "dog", "stands", ".", "the", "sky", "shines", ".", "a", "large"]
    ids = tokenizer.convert_tokens_to_ids(words)
    assert captioner._caption(ids) == Caption("a dog stands . the sky shines .", "length")
    assert captioner._caption([*ids, end, end]) == Caption("a dog stands . the sky shines . a large", "stop")
    assert captioner._caption([end]) == Caption("", "stop")


def test_out_of_memory_names_a_way_out(captioner, monkeypatch):
    def generate(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    monkeypatch.setattr(captioner.model, "generate", generate)
    with pytest.raises(ValueError, match=r"9 images .* 2 GiB\. .*`batch_size`"):
        captioner(IMAGES)


def test_a_model_that_does_not_write_is_refused(tiny_clip):
    with pytest.raises(ValueError, match=r"type 'clip'.* does not write about images"):
        Captioner.load(str(tiny_clip))


def test_the_prompt_asks_for_captions_as_in_the_paper():
    for word in (
        "objects",
        "where",
        "colors",
        "materials",
        "people",
        "light",
        "text",
        "visible",
        "guess",
        "paragraph",
    ):
        assert word in PROMPT


@pytest.mark.parametrize(("change", "words"), [(None, "is missing"), (float("nan"), "NaN or infinite")])
def test_missing_and_nan_weights_are_refused(tiny_vlm, tmp_path, change, words):
    folder = shutil.copytree(tiny_vlm, tmp_path / "vlm")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    if change is None:
        del weights[name]
    else:
        weights[name].fill_(change)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"`model={folder}`.*{words}"):
        Captioner.load(str(folder))
