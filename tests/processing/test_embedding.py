"""Embeddings of images, crops, patches and texts against single forward passes, and their batches."""

import types

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from fastgoal.processing.embedding import batches_by_tokens, embed_crops, embed_images, embed_patches, embed_texts
from fastgoal.processing.pixels import PixelReader


@pytest.fixture(scope="module")
def plain(tiny_clip):
    """The model and processor as transformers loads them, which read 77 tokens."""
    return CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)


def gradients(count):
    return [Image.linear_gradient("L").rotate(30 * i).resize((40 + 3 * i, 50)) for i in range(count)]


@torch.no_grad()
def embed_one(model, processor, image):
    inputs = processor.image_processor(image.convert("RGB"), return_tensors="pt")
    return normalize(model.get_image_features(**inputs).pooler_output, dim=-1)[0]


@torch.no_grad()
def embed_text(model, processor, text, **options):
    inputs = processor.tokenizer(text, truncation=True, return_tensors="pt", **options)
    return normalize(model.get_text_features(**inputs).pooler_output, dim=-1)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_are_embedded_in_order(plain, tmp_path, num_workers):
    model, processor = plain
    images = gradients(5)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    model.train()
    random = torch.get_rng_state()
    paths = [tmp_path / f"{number}.png" for number in (3, 0, 4, 4, 1)]
    embeds = embed_images(model, processor, paths, batch_size=2, num_workers=num_workers)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert embeds.dtype == torch.float32
    for number, found in zip((3, 0, 4, 4, 1), embeds, strict=True):
        torch.testing.assert_close(found, embed_one(model, processor, images[number]), rtol=0, atol=1e-6)
    torch.testing.assert_close(embed_images(model, processor, iter(images))[3], embeds[0], rtol=0, atol=1e-6)


def test_an_unreadable_image_is_named(plain, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"torn\.png"):
        embed_images(*plain, [gradients(1)[0], tmp_path / "torn.png"])


def test_nothing_to_embed(plain):
    for function, name in ((embed_images, "`images`"), (embed_texts, "`texts`")):
        with pytest.raises(ValueError, match=name):
            function(*plain, [])
        with pytest.raises(ValueError, match=r"`batch_size`.*0"):
            function(*plain, ["a"], batch_size=0)
    with pytest.raises(ValueError, match=r"`texts`.*'one text'"):
        embed_texts(*plain, "one text")


def test_patches_are_in_the_joint_space(plain):
    model, processor = plain
    images = [image.convert("RGB") for image in gradients(3)]
    embeds = embed_patches(model, processor, images)
    assert embeds.shape == (3, 16, 16)
    with torch.no_grad():
        vision = model.vision_model(**processor.image_processor(images, return_tensors="pt"))
        expected = model.visual_projection(model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]))
    torch.testing.assert_close(embeds, normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_texts_alone_and_together_are_the_same(processor, model):
    texts = ["red.", "A " + "long " * 60 + "one.", "Blue and green.", "red.", "x" * 400]
    together = embed_texts(model, processor, texts, 64, tokens_per_text=32)
    assert together.shape == (5, model.config.projection_dim)
    assert torch.equal(together[0], together[3])
    for text, embeds in zip(texts, together, strict=True):
        torch.testing.assert_close(embeds, embed_texts(model, processor, [text], 1)[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(embeds, embed_text(model, processor, text), atol=1e-5, rtol=0)
    # The batches depend on the set of texts, not on their order.
    assert torch.equal(embed_texts(model, processor, texts[::-1], 64, tokens_per_text=32), together.flip(0))


def test_texts_are_truncated_at_the_length_of_the_model_or_below(processor, model, plain):
    texts = ["x" * 400, "red", "x" * 30]
    cut = embed_texts(model, processor, texts, 1, max_length=12)
    torch.testing.assert_close(cut[0], cut[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(cut[0], embed_text(model, processor, texts[0], max_length=12), atol=1e-5, rtol=0)
    # The processor is made for 248 tokens and this model reads 77.
    short = embed_texts(plain[0], processor, texts, max_length=100)
    torch.testing.assert_close(short[0], embed_text(*plain, texts[0], max_length=77), atol=1e-5, rtol=0)


def test_texts_of_similar_lengths_share_a_forward_pass(plain, monkeypatch):
    model, processor = plain
    shapes, embed = [], model.get_text_features

    def note(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return embed(**inputs)

    monkeypatch.setattr(model, "get_text_features", note)
    texts = ["number 1", "number 2" + " x" * 40, "number 1", "number 3 x", "number 4" + " x" * 100]
    embed_texts(model, processor, texts, batch_size=2)
    # BOS, six letters, one digit, the x's and EOS; four different texts, longest first, the longest cut at 77.
    assert shapes == [(1, 77), (1, 49), (2, 10)]
    shapes.clear()
    embed_texts(model, processor, [f"number {i} x" for i in range(8)], batch_size=1)
    assert shapes == [(7, 10), (1, 10)]  # as many tokens as one text of 77 has


def test_batches_of_texts_are_full_but_not_of_padding():
    def sizes(lengths, most):
        texts = [f"{i:02}" for i in range(len(lengths))]
        batches = list(batches_by_tokens(dict(zip(texts, lengths, strict=True)), most))
        longest_first = sorted(texts, key=lambda text: -lengths[int(text)])
        assert [text for batch in batches for text in batch] == longest_first
        return [len(batch) for batch in batches]

    assert sizes([10] * 25, 100) == [10, 10, 5]
    assert sizes([5, 300, 5], 100) == [1, 2]
    assert sizes([], 100) == []
    assert sizes([10] * 5 + [20] * 3, 400) == [3, 5]  # 60 tokens are an eighth of 400, and the 10s would be padded
    assert sizes([10] * 5 + [20] * 2, 400) == [3, 4]  # 40 are not, so the batch gets one of them
    assert sizes([10] * 40 + [11] * 40, 1000) == [80]  # a tenth of padding at most


def test_crops_of_any_number_come_back_with_their_item(processor, model):
    torch.manual_seed(0)
    reader = PixelReader(processor.image_processor)
    pixels = [torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8) for count in (3, 1, 9, 2, 4)]
    taken = []

    def items():
        for number, crops in enumerate(pixels):
            taken.append(number)
            yield number, crops

    found = []
    for number, embeds in embed_crops(model, reader, items(), 4):
        if not found:
            assert taken == [0, 1, 2]  # the second batch was collected when the first result came, and no more
        found.append((number, embeds))
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    for crops, (_, embeds) in zip(pixels, found, strict=True):
        inputs = processor.image_processor(list(crops), do_resize=False, do_center_crop=False, return_tensors="pt")
        with torch.no_grad():
            expected = normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)


def test_items_without_crops_have_no_embeddings(processor, model):
    reader = PixelReader(processor.image_processor)
    crops, none = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.empty(0)
    for order in ([none, crops, none], [crops, none, crops], [none], [crops, none, none], []):
        found = embed_crops(model, reader, ((None, some) for some in order), 3)
        assert [len(embeds) for _, embeds in found] == [len(some) for some in order]


def test_a_model_is_in_eval_mode_while_it_embeds(processor):
    modes = []

    class Towers(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def get_image_features(self, pixel_values):
            modes.append((self.training, torch.is_grad_enabled()))
            return types.SimpleNamespace(pooler_output=pixel_values.mean((2, 3)))

    towers = Towers()
    embed_images(towers, processor, gradients(2))
    assert modes == [(False, False)]
    assert towers.training
