"""Keys in the forms that their issuers publish are found; text that only looks similar passes."""

import random
import string

import pytest

from fastgoal.hub_cards.access_keys import refuse_access_keys
from fastgoal.hub_cards.spaces import package_files

from .conftest import TOKEN

WORDS = random.Random(0)


def chars(number, alphabet=string.ascii_letters + string.digits):
    return "".join(WORDS.choice(alphabet) for _ in range(number))


HEX, UPPER = "0123456789abcdef", string.ascii_uppercase + "234567"
# Made at random, in pieces, so that scanners of this repository find nothing in it.
KEYS = {
    "Hugging Face": ["hf_" + chars(34), "api_org_" + chars(34)],
    "AWS": ["AKIA" + chars(16, UPPER), "ASIA" + chars(16, UPPER), "aws_secret_access_key = " + chars(40)],
    "OpenAI or Anthropic": [
        *("sk-" + chars(20) + "T3BlbkFJ" + chars(20), "sk-proj-" + chars(48)),
        *("sk-ant-api03-" + chars(93), "sk-or-v1-" + chars(64, HEX)),
    ],
    "GitHub": ["gh" + "p_" + chars(36), "gh" + "s_" + chars(36), "github" + "_pat_" + chars(22) + "_" + chars(59)],
    "GitLab": ["gl" + "pat-" + chars(20)],
    "Google": ["AI" + "za" + chars(35), "GOC" + "SPX-" + chars(28)],
    "Azure": ["AccountName=me;Account" + "Key=" + chars(86) + "=="],
    "Slack": [
        "xo" + "xb-123456789012-1234567890123-" + chars(24),
        f"https://hooks.slack.com/services/T0/B0/{chars(24)}",
    ],
    "Stripe": ["sk" + "_live_" + chars(24), "rk" + "_test_" + chars(24)],
    "Twilio or SendGrid": ["SK" + chars(32, HEX), "SG" + "." + chars(22) + "." + chars(43)],
    "PyPI or npm": ["py" + "pi-AgEIcHlwaS5vcmc" + chars(70), "np" + "m_" + chars(36)],
    "Weights & Biases": ["WANDB_API_KEY=" + chars(40, HEX), '"wandb_api_key": "' + chars(40, HEX) + '"'],
    "Replicate, Groq, NVIDIA or Databricks": [
        *("r8" + "_" + chars(37), "gs" + "k_" + chars(52), "nva" + "pi-" + chars(64), "da" + "pi" + chars(32, HEX)),
    ],
    "DigitalOcean, Discord or Telegram": ["dop" + "_v1_" + chars(64, HEX), "123456789" + ":AA" + chars(33)],
    "JSON Web Token": ["ey" + "J" + chars(20) + ".ey" + "J" + chars(40) + "." + chars(43)],
    "private key": [
        *(f"-----BEGIN {name}PRIVATE " + "KEY-----" for name in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED ")),
        *("-----BEGIN PGP PRIVATE " + "KEY BLOCK-----", "PuTTY-User-Key-" + "File-3: ssh-ed25519"),
    ],
    "address with a password": ["postgresql://me:" + chars(12) + "@db.example.com/data"],
}
OTHER_TEXT = [
    *("hf_...", "hf_hub_download", "token: hf_TOKEN", "AKIA", "an AKIAxxxxxxxx key", "the ASIA-PACIFIC region"),
    *(
        "sk-learn",
        "a.sk-estimator-doc-link.fitted:hover",
        "risk-internationalization-2026",
        "task-12345678901234567890",
    ),
    *("ghost_in_the_machine_is_a_film_of_1995_by_someone", "https://huggingface.co/me/clip", "me@example.com"),
    *("https://example.com:8080/@me", "-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----", "SK" + "g" * 32),
    *("0123456789abcdef0123456789abcdef01234567", "{}://{}:{}@{}", "12:30:45 a@b.c", "eyJ.eyJ.", "xoxo-hugs"),
]


@pytest.mark.parametrize(("form", "key"), [(form, key) for form, keys in KEYS.items() for key in keys])
def test_keys_are_refused_and_not_repeated(form, key):
    text = f'{{"name": "x",\n"value": "{key}"}}\n' if '"' not in key else f"{{{key}}}".join("\n\n")
    for data in (text.encode(), text.encode("utf-16")):
        with pytest.raises(ValueError, match=r"notes\.md, line 2: .*access key") as caught:
            refuse_access_keys("notes.md", data)
        assert f"({form})" in str(caught.value)
        assert key not in str(caught.value)


@pytest.mark.parametrize("text", OTHER_TEXT)
def test_other_text_passes(text):
    refuse_access_keys("notes.md", f"a {text} b".encode())


def test_the_token_of_the_push_is_found_in_any_form():
    with pytest.raises(ValueError, match=r"notes\.md, line 1: .*access key"):
        refuse_access_keys("notes.md", b"the password is swordfish", "swordfish")
    refuse_access_keys("notes.md", b"the password is swordfish", "another")
    refuse_access_keys("notes.md", b"the password is swordfish", "")
    with pytest.raises(ValueError, match="Hugging Face") as caught:
        refuse_access_keys("notes.md", f"my token is {TOKEN}".encode(), "another")
    assert TOKEN not in str(caught.value)


def test_this_package_has_no_keys(tiny_clip):
    for name, data in package_files().items():
        refuse_access_keys(name, data)
    refuse_access_keys("tokenizer.json", (tiny_clip / "tokenizer.json").read_bytes())
