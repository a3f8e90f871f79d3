"""Find access keys and private keys in files, by the forms that their issuers publish.

Only forms that other text practically never has are listed. A password has no form, so none is found, except in an
address.
"""

import re

_FORMS = {
    "Hugging Face": r"\b(?:hf_|api_org_)[A-Za-z0-9]{30,}",
    "AWS": (
        r"\b(?:A3T[A-Z0-9]|AKIA|ABIA|ACCA|ASIA)[A-Z2-7]{16}\b"
        r"|(?i:aws_?secret_?access_?key\W{1,6})[A-Za-z0-9/+]{40}\b"
    ),
    "OpenAI or Anthropic": r"\bsk-(?:[a-z]+[0-9]*-)*(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_]{20,}",
    "GitHub": r"\bgh[oprsu]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}",
    "GitLab": r"\bgl(?:pat|dt|rt|ptt|cbt)-[A-Za-z0-9_-]{20,}",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{28}|\bya29\.[A-Za-z0-9_-]{30,}",
    "Azure": r"(?i:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{43,86}=",
    "Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{20,}",
    "Stripe": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "Twilio or SendGrid": r"\bSK[0-9a-f]{32}\b|\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
    "PyPI or npm": r"\bpypi-AgE[A-Za-z0-9_-]{50,}|\bnpm_[A-Za-z0-9]{36}|//\S+:_authToken=[A-Za-z0-9_+/=-]{20,}",
    "Weights & Biases": r"(?i:wandb_?api_?key\W{1,6})[0-9a-f]{40}\b|\bwandb_v1_[A-Za-z0-9_]{30,}",
    "Replicate, Groq, NVIDIA or Databricks": (
        r"\br8_[A-Za-z0-9]{37}|\bgsk_[A-Za-z0-9]{48,}|\bnvapi-[A-Za-z0-9_-]{60,}|\bdapi[0-9a-f]{32}\b"
    ),
    "DigitalOcean, Discord or Telegram": (
        r"\bdo[opr]_v1_[0-9a-f]{64}|\b[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}\b"
        r"|\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b"
    ),
    "JSON Web Token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    "private key": r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]"
    r"|\bAGE-SECRET-KEY-1[A-Z0-9]{50,}",
    "address with a password": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}$]{1,100}:[^\s/:@\"'<>{}$]{3,100}@[a-z0-9]",
}
ACCESS_KEY = re.compile("|".join(f"(?P<form{number}>{form})" for number, form in enumerate(_FORMS.values())))


def refuse_access_keys(name: str, data: bytes, token: str = "") -> None:
    """Raise a `ValueError` that names the file, the line, and the form of a key, but not the key, if `data` has one.

    Args:
        name: Name of the file, for the message.
        data: Its content. Text in UTF-16 is read too.
        token: An access token to look for, in whichever form it is.
    """
    text = data.replace(b"\0", b"").decode("utf-8", errors="replace")
    place = text.find(token) if token else -1
    form = "the one of this push"
    if place < 0:
        if not (match := ACCESS_KEY.search(text)):
            return
        place, form = match.start(), [*_FORMS][int((match.lastgroup or "").removeprefix("form"))]
    line = text.count("\n", 0, place) + 1
    raise ValueError(
        f"{name}, line {line}: the file holds an access key ({form}) and is not sent. Remove the key first, and revoke "
        "it if others can have seen it."
    )
