"""Names for the public, and cards that change their name."""

import pytest
from huggingface_hub import ModelCard

from fastgoal.hub_cards.cards import public_name, public_weights, rename_card


def test_rename(trained):
    text = rename_card((trained / "README.md").read_text(), "me/other")
    assert 'name = "me/other"' in text
    assert 'name = "my-model"' not in text
    assert "# other\n" in text
    data = ModelCard(text).data.to_dict()
    assert data["model-index"][0]["name"] == "me/other"
    assert data["widget"][0]["src"] == "https://huggingface.co/me/other/resolve/main/examples/1.jpg"
    again = ModelCard(rename_card(text, "you/third")).data.to_dict()
    assert again["widget"][0]["src"] == "https://huggingface.co/you/third/resolve/main/examples/1.jpg"


@pytest.mark.parametrize(
    ("name", "public"),
    [("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"), ("/home/me/model/", "model"), ("../b", "b")],
)
def test_public_names(name, public):
    assert public_name(name) == public


@pytest.mark.parametrize(
    ("mark", "public"),
    [("clip-b16#0123", "clip-b16"), ("/home/me/clip#01", "clip"), ("owner/name@f00", "owner/name@f00")],
)
def test_public_weights(mark, public):
    assert public_weights(mark) == public
