"""Matching: embeddings of texts and crops against single forwards, batches, and which pair is the best."""

import torch

from fastgoal import Region, Sentence
from fastgoal.processing.matching import batches_by_tokens, embed_crop_stream, embed_texts, pair_up, rank_pairs


def test_texts_alone_and_together_are_the_same(processor, model):
    texts = ["red.", "A " + "long " * 60 + "one.", "Blue and green.", "red.", "x" * 400]
    together = embed_texts(texts, model, processor.tokenizer, batch_size=64)
    assert together.shape == (5, model.config.projection_dim)
    for text, embeds in zip(texts, together):
        alone = embed_texts([text], model, processor.tokenizer, batch_size=1)[0]
        torch.testing.assert_close(embeds, alone, atol=1e-6, rtol=0)
        inputs = processor.tokenizer(text, truncation=True, return_tensors="pt")
        wanted = model.get_text_features(**inputs).pooler_output[0]
        torch.testing.assert_close(embeds, wanted / wanted.norm(), atol=1e-5, rtol=0)
    # The batches depend on the set of texts, not on their order.
    backwards = embed_texts(texts[::-1], model, processor.tokenizer, batch_size=64)
    assert torch.equal(backwards, together.flip(0))


def test_batches_of_texts_are_full_but_not_of_padding():
    def sizes(lengths, most):
        texts = [f"{i:02}" for i in range(len(lengths))]
        batches = list(batches_by_tokens(dict(zip(texts, lengths)), most))
        longest_first = sorted(texts, key=lambda text: -lengths[int(text)])
        assert [text for batch in batches for text in batch] == longest_first
        return [len(batch) for batch in batches]

    assert sizes([10] * 25, 100) == [10, 10, 5]
    assert sizes([5, 300, 5], 100) == [1, 2]
    assert sizes([], 100) == []
    assert sizes([10] * 5 + [20] * 3, 400) == [3, 5]  # 60 tokens are an eighth of 400, and the 10s would be padded
    assert sizes([10] * 5 + [20] * 2, 400) == [3, 4]  # 40 are not, so the batch gets one of them
    assert sizes([10] * 40 + [11] * 40, 1000) == [80]  # a tenth of padding at most


def test_crops_of_any_number_come_back_image_by_image(processor, model):
    torch.manual_seed(0)
    pixels = [torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8) for count in (3, 1, 9, 2, 4)]
    taken = []

    def images():
        for crops in pixels:
            taken.append(len(crops))
            yield crops

    found = []
    for embeds in embed_crop_stream(images(), model, processor.image_processor, 4):
        if not found:
            assert taken == [3, 1, 9]  # the second batch was on its way when the first result came, no more
        found.append(embeds)
    assert [len(embeds) for embeds in found] == [3, 1, 9, 2, 4]
    for crops, embeds in zip(pixels, found):
        inputs = processor.image_processor(list(crops), do_resize=False, do_center_crop=False, return_tensors="pt")
        wanted = model.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(embeds, torch.nn.functional.normalize(wanted, dim=-1), atol=1e-5, rtol=0)
    assert list(embed_crop_stream([], model, processor.image_processor, 4)) == []


def test_the_best_pair_is_one_the_model_can_see():
    sentences = [Sentence("a", 0, 1), Sentence("b", 2, 3), Sentence("c", 4, 5)]
    regions = [Region((0, 0, 1, 1)), Region((1, 1, 2, 2))]
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.5, 0.6]])
    best = lambda visible: [pair.best for pair in pair_up(sentences, regions, similarity, visible)]  # noqa: E731
    assert best(lambda s, r: True) == [True, False, False]
    assert best(lambda s, r: s.text != "a") == [False, True, False]
    assert best(lambda s, r: r is regions[1]) == [False, True, False]
    assert best(lambda s, r: False) == [True, False, False]


def test_texts_are_cut_at_a_length(processor, model):
    texts = ["x" * 400, "red", "x" * 30]
    seen = []
    cut = embed_texts(texts, model, processor.tokenizer, 1, max_length=12, advance=seen.append)
    assert sum(seen) == 3
    torch.testing.assert_close(cut[0], cut[2], atol=1e-6, rtol=0)
    inputs = processor.tokenizer(texts[0], truncation=True, max_length=12, return_tensors="pt")
    wanted = model.get_text_features(**inputs).pooler_output[0]
    torch.testing.assert_close(cut[0], wanted / wanted.norm(), atol=1e-5, rtol=0)


def test_images_without_crops_have_no_embeddings(processor, model):
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    none = torch.empty(0)
    for order in ([none, crops, none], [crops, none, crops], [none], [crops, none, none]):
        embeds = list(embed_crop_stream(order, model, processor.image_processor, 3))
        assert [len(some) for some in embeds] == [len(some) for some in order]


def test_pairs_are_ranked_among_those_the_model_sees():
    scores = [0.5, 0.9, 0.9, 0.1]
    assert rank_pairs(scores, lambda index: True) == [1, 2, 0, 3]
    assert rank_pairs(scores, lambda index: index != 1, 2) == [2, 0]
    assert rank_pairs(scores, lambda index: False) == [1]
    assert rank_pairs([], lambda index: True) == []
