"""The files of a tokenizer as `tokenizer.json`, the only form that transformers.js reads."""

import json
import string
from pathlib import Path
from typing import Any

from fastgoal.processing.files import write_json


def write_tokenizer(folder: Path, tokenizer: Any, length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for texts of at most `length` tokens."""
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "unk", "pad")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "padding_side": "right",
        "model_input_names": tokenizer.model_input_names,
        **{name: token for name, token in special.items() if token},
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))


def tokenizer_json(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that gives the token ids of a tokenizer, without truncation or padding.

    The characters of a special token in a caption, such as `<|endoftext|>`, are text, as for our processor.
    """
    core = tokenizer.backend_tokenizer if tokenizer.is_fast else _from_sentencepiece(tokenizer)
    content: dict[str, Any] = json.loads(core.to_str())
    added = [token for token in content["added_tokens"] if not token["special"]]
    return {**content, "added_tokens": added, "truncation": None, "padding": None}


def _from_sentencepiece(tokenizer: Any) -> Any:
    """Convert the tokenizer of SigLIP, which transformers has only for sentencepiece.

    It removes case and punctuation before sentencepiece normalizes and splits the text.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, models, normalizers, processors

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(tokenizer.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    core = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("▁", " "),
            *([normalizers.Lowercase()] if tokenizer.do_lower_case else []),
            normalizers.Replace(Regex("[" + "".join(f"\\{character}" for character in string.punctuation) + "]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Strip(),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    end = tokenizer.eos_token
    core.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    return core
