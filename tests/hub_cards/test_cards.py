"""Public names, texts that are safe in a card, and the name in a card."""

import re
import shutil

import pytest
from huggingface_hub import ModelCard

from fastgoal.hub_cards.cards import card_name, check_license, plain, public_name, public_weights, rename_card, spread
from fastgoal.hub_cards.model_card import ModelFacts, TrainingFacts, write_model_card
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.run import RunArguments


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
    assert ModelCard(rename_card(text, "2026-01-01")).data.to_dict()["model-index"][0]["name"] == "2026-01-01"


@pytest.mark.parametrize("license", ["mit\nfoo: bar", "MIT", "CC BY 4.0", "", "mit\n", "[mit]", "mit # x", "a: b"])
def test_a_license_is_an_identifier(license, tmp_path):
    facts = ModelFacts("mine", 77, 32, 8, 16, 1000, license=license)
    for use in (
        lambda: check_license(license),
        lambda: CardOptions(license=license),
        lambda: RunArguments("model", "data", license=license),
        lambda: write_model_card(tmp_path, facts),
    ):
        with pytest.raises(ValueError, match="`license` must be an identifier"):
            use()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("license", [None, "mit", "openrail++", "bsd-3-clause-clear", "llama3.1", "c-uda", "other"])
def test_licenses_of_the_hub_pass(license, tmp_path):
    check_license(license)
    card = write_model_card(tmp_path, ModelFacts("mine", 77, 32, 8, 16, 1000, license=license))
    assert ModelCard(card.read_text()).data.license == license


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


HOSTILE = 'a" + exit()\n---\nlicense: mit <script>alert(1)</script> `x` | y \x1b]0;t\x07 \u202e{{ 7 * 7 }}'


def test_card_names():
    assert card_name("my-model_2.0") == "my-model_2.0"
    assert card_name("模型") == "模型"
    assert card_name("\x1b]0;x\x07") == "0_x"
    assert card_name("🦊") == "unnamed"
    assert not set('"\n<>|`\x1b\u202e{}') & {*card_name(HOSTILE)}


def test_hostile_facts_leave_the_card_intact(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    training = TrainingFacts(
        data=public_name(HOSTILE),
        rows=3,
        objective="fast_goal",
        weights={"global": 1.0},
        settings={"note": HOSTILE, HOSTILE: 1},
        steps=2,
        epochs=1.0,
        losses=[],
        hardware=HOSTILE,
        seconds=None,
        versions={"torch": HOSTILE},
    )
    facts = ModelFacts.of_folder(
        tmp_path / "model", base_model=HOSTILE, note=HOSTILE, converted_from=HOSTILE, training=training
    )
    card = ModelCard(write_model_card(tmp_path / "model", facts).read_text(encoding="utf-8"))
    assert card.data.to_dict().get("license") is None
    parts = card.text.split("```")
    assert len(parts) % 2 == 1
    compile("".join(part.removeprefix("python") for part in parts[1::2] if part.startswith("python")), "card", "exec")
    prose = "".join(parts[::2])
    assert "<script" not in prose
    assert not set("\x1b\x07\u202e") & {*card.text}
    assert "{{ 7 * 7 }}" in prose  # unchanged, not 49
    assert "\nlicense: mit" not in card.text
    rows = [line for line in prose.splitlines() if line.startswith("| note |")]
    assert len(rows) == 1
    assert re.sub(r"\\\|", "", rows[0]).count("|") == 3


def test_long_logs_are_shown_in_part():
    assert spread(range(1, 30)) == [1, 5, 9, 13, 17, 21, 25, 29]
    assert spread([1, 2, 3]) == [1, 2, 3]
    assert spread([1]) == [1]
    assert spread([]) == []


def test_a_prompt_keeps_its_lines():
    assert plain({"prompt": "One <b>\nTwo `x`"})["prompt"] == "One &lt;b>\nTwo 'x'"
    assert plain(["a\nb", 3, None]) == ["a b", 3, None]
