"""A trained model reads long captions in every program, even if its base was saved after a call that truncates."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.embedding import embed_texts
from tests.tiny_trainers import SETTINGS, make_trainer

SENTENCE = "a dog sits near the red house . "


def captions_with(sentences):
    """Two captions that are equal in so many sentences, and different after them."""
    return [SENTENCE * sentences + end + " stands on the green lawn under the sofa ." for end in ("a cat", "two birds")]


def rows_of(captions):
    images = (Image.new("RGB", (40, 32), color) for color in ("red", "blue"))
    return [{"image": image, "caption": caption} for image, caption in zip(images, captions, strict=True)]


CAPTIONS = captions_with(5)  # equal in the first 77 tokens of every family
ROWS = rows_of(CAPTIONS)


@pytest.fixture(scope="module", params=["clip", "metaclip2", "siglip", "siglip2"])
def base(request, tiny_bases, tmp_path_factory):
    """A base that was saved after a call with the text length of its family."""
    folder = shutil.copytree(tiny_bases[request.param], tmp_path_factory.mktemp("base") / request.param)
    processor = AutoProcessor.from_pretrained(folder)
    length = 64 if request.param.startswith("siglip") else 77
    processor(text=CAPTIONS, truncation=True, padding="max_length", max_length=length)
    processor.save_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        stored = json.loads((folder / "tokenizer.json").read_text())
        assert (stored["truncation"]["max_length"], stored["padding"]["strategy"]) == (length, {"Fixed": length})
        assert AutoProcessor.from_pretrained(folder).tokenizer.init_kwargs["max_length"] == length
    return folder


@pytest.fixture(scope="module", params=[None, pytest.param(512, marks=pytest.mark.slow)])
def trained(request, base, tmp_path_factory):
    """A model that was trained for a step, by default or to read 512 tokens.

    Returns:
        Its folder, the text embeddings of its trainer's evaluation, and the captions. They differ after 77 tokens, or
        after 256.
    """
    folder, length = tmp_path_factory.mktemp("trained"), request.param
    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    sentences = 5
    while length and len(tokenizer(SENTENCE * sentences, truncation=False)["input_ids"]) <= 258:
        sentences += 1
    captions = captions_with(sentences)
    rows = rows_of(captions)
    settings = {**SETTINGS, "max_steps": 1, "objective": "global"}
    args = FastGoalTrainingArguments(str(folder), **settings)
    trainer = FastGoalTrainer(str(base), args, train_dataset=rows, eval_dataset=rows, max_text_length=length)
    trainer.train()
    expected = torch.from_numpy(trainer.predict(rows).predictions[1])
    # Later calls with other lengths must not be saved either.
    embed_texts(trainer.model, trainer.processing_class, captions, max_length=12)
    trainer.processing_class(text=captions, padding="max_length", max_length=20)
    trainer.save_model()
    assert (expected[0] - expected[1]).abs().max() > 1e-4
    return folder, expected, captions


def test_the_processor_reads_what_the_evaluation_reads(trained):
    folder, expected, captions = trained
    model, processor = load_model(str(folder), "cpu")
    torch.testing.assert_close(embed_texts(model, processor, captions), expected, atol=1e-5, rtol=0)
    for reader in (processor, FastGoalProcessor.from_pretrained(folder)):
        with torch.no_grad():
            embeds = model.get_text_features(**reader(text=captions)).pooler_output
        torch.testing.assert_close(normalize(embeds, dim=-1), expected, atol=1e-5, rtol=0)


def test_the_plain_processor_reads_what_the_evaluation_reads(trained):
    folder, expected, captions = trained
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(processor) is not FastGoalProcessor
    padding = "max_length" if "siglip" in model.config.model_type else True
    with torch.no_grad():
        inputs = processor(text=captions, truncation=True, padding=padding, return_tensors="pt")
        embeds = model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(normalize(embeds, dim=-1), expected, atol=1e-5, rtol=0)


def test_sentence_transformers_reads_what_the_evaluation_reads(trained):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, expected, captions = trained
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    # As the model card says for SigLIP.
    is_siglip = json.loads((folder / "config.json").read_text())["model_type"] == "siglip"
    padded = {"processing_kwargs": {"text": {"padding": "max_length"}}} if is_siglip else {}
    embeds = torch.tensor(model.encode(captions, normalize_embeddings=True, **padded))
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)


def test_saved_files_remember_no_length(trained):
    folder = trained[0]
    if (folder / "tokenizer.json").is_file():
        stored = json.loads((folder / "tokenizer.json").read_text())
        assert (stored["truncation"], stored["padding"]) == (None, None)
    assert "max_length" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_a_trainer_forgets_the_length_of_the_processor_that_it_gets(base, tmp_path):
    plain = AutoProcessor.from_pretrained(base)
    plain.tokenizer.model_max_length = 1000
    processor = FastGoalProcessor(plain.image_processor, plain.tokenizer, patch_size=8)
    model = FastGoalModel.from_base(str(base))
    make_trainer(base, tmp_path, ROWS, model=model, processing_class=processor, objective="global")
    longest = model.config.text_config.max_position_embeddings
    assert longest > 77
    assert processor(text="a " * 300)["input_ids"].shape == (1, longest)
