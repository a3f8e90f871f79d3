"""Serve the model of this folder as a custom inference endpoint: scores of labels for an image, or embeddings.

This file is copied into the folder of a model and runs without `fastgoal`.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoProcessor

LARGEST_FILE = 32 * 2**20  # bytes of an image
MOST_PIXELS = 2**26  # of all images of a request, as they are sent and as they are resized
LARGEST_RATIO = 200  # between the sides of an image; the same as in images.py
MOST_ENTRIES = 64  # images or texts in a request
MOST_CHARACTERS = 100_000  # in all texts of a request
# Parameters that clients send next to `inputs` when they ask for embeddings.
EMBEDDING_PARAMETERS = (
    *("normalize", "truncate", "prompt_name", "truncation_direction", "dimensions", "encoding_format"),
)


class EndpointHandler:
    """Answer requests `{"inputs": ..., "parameters": ...}`, such as those of `huggingface_hub.InferenceClient`.

    `inputs` is an image, a text, a list of either, or `{"image": ..., "text": ...}` where each is one or a list. An
    image is base64 (with or without `data:image/...;base64,` in front), bytes or a PIL image. A string is an image
    inside of `{"image": ...}` or together with `candidate_labels`, as in the client's `zero_shot_image_classification`;
    otherwise it is a text, as in the client's `feature_extraction`. Texts that are longer than the model reads are
    truncated. URLs are never fetched; the client of the Hub reads them itself.

    `parameters` are the following; those for embeddings may also stand next to `inputs`:

    * `candidate_labels`, a list of texts or texts separated by commas, asks for scores of the image: a softmax over
      the labels, or a sigmoid of each label for a SigLIP model that was trained with the sigmoid loss;
    * `hypothesis_template` puts each label in place of its `{}`;
    * `return` is `"scores"` or `"embeddings"`; the default is scores for images with texts and embeddings otherwise;
    * `normalize: false` returns unnormalized embeddings, and `truncate: false` refuses longer texts.

    The answer for scores is a list of `{"label", "score"}` for each image, best first, or the list itself for a single
    image. The answer for embeddings is a list of rows, or `{"image_embeddings": [...], "text_embeddings": [...]}` if
    `inputs` has names. An invalid request raises a `ValueError`, which an endpoint turns into status 400 and
    `{"error": "..."}`.

    Args:
        path: Folder of the model.
    """

    def __init__(self, path: str = "") -> None:
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=False).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.processor.tokenizer.split_special_tokens = True  # a text with `<|endoftext|>` does not end there
        self.is_siglip = self.model.config.model_type == "siglip"  # these models read padding, up to their text length
        # A SigLIP model that was trained with the softmax loss says so.
        self.is_sigmoid = self.is_siglip and getattr(self.model.config, "contrastive", None) != "softmax"

    def __call__(self, data: dict[str, Any]) -> Any:
        try:
            return self.answer(data)
        except ValueError:
            raise
        except Exception as error:  # its message may tell a client too much about the machine
            raise ValueError(f"The request failed ({type(error).__name__}).") from error

    @torch.inference_mode()
    def answer(self, data: dict[str, Any]) -> Any:
        """Answer a request; errors in it are a `ValueError`."""
        if not isinstance(data, dict):
            raise ValueError(f'A request must be a JSON object with "inputs", got {type(data).__name__}.')
        inputs: Any = data.get("inputs")
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"`parameters` must be a JSON object, got {type(parameters).__name__}.")
        parameters = {**{name: data[name] for name in EMBEDDING_PARAMETERS if name in data}, **parameters}
        labels = parameters.pop("candidate_labels", None)
        has_names = isinstance(inputs, dict)
        if not has_names:
            is_text = isinstance(inputs, str) or (isinstance(inputs, list) and all(isinstance(x, str) for x in inputs))
            inputs = {"text" if is_text and labels is None else "image": inputs}
        labels = inputs.get("candidate_labels") if labels is None else labels
        if unknown := inputs.keys() - {"image", "text", "candidate_labels"}:
            raise ValueError(f"`inputs` must have the names image, text or candidate_labels, got {_quoted(unknown)}.")
        if labels is not None and inputs.get("text") is not None:
            raise ValueError("A request must have `text` or `candidate_labels`, got both.")
        images = self.read_images(_as_list(inputs.get("image"), "image"))
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        texts = _as_list(inputs.get("text") if labels is None else labels, "text")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("`text` and `candidate_labels` must be non-empty texts.")
        if sum(map(len, texts)) > MOST_CHARACTERS:
            raise ValueError(f"The texts of a request must have at most {MOST_CHARACTERS:,} characters together.")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise ValueError("`text` and `candidate_labels` must be valid Unicode; one contains an unpaired surrogate.")
        template = _option(parameters, "hypothesis_template", "{}", str)
        normalize = _option(parameters, "normalize", True, bool)
        truncate = _option(parameters, "truncate", True, bool)
        result = parameters.pop("return", "scores" if images and texts else "embeddings")
        if unknown := {name for name, value in parameters.items() if value is not None}:
            raise ValueError(f"Unknown parameters: {_quoted(unknown)}.")
        if template.count("{}") != 1 or len(template) * len(texts) > MOST_CHARACTERS:
            raise ValueError("`hypothesis_template` must be a short text with one {}, which the label replaces.")
        if result not in ("scores", "embeddings"):
            raise ValueError(f"`return` must be 'scores' or 'embeddings', got {result!r}.")
        if not images and not texts:
            raise ValueError('The request has neither images nor texts. Send {"inputs": {"image": ..., "text": ...}}.')
        if result == "scores" and not (images and texts):
            raise ValueError("Scores need at least one image and one text (or `candidate_labels`).")

        embeds = {"image_embeddings": self.embed_images(images)} if images else {}
        if texts:
            embeds["text_embeddings"] = self.embed_texts([template.replace("{}", text) for text in texts], truncate)
        if normalize or result == "scores":
            embeds = {name: torch.nn.functional.normalize(rows, dim=-1) for name, rows in embeds.items()}
        if result == "embeddings":
            answer = {name: rows.tolist() for name, rows in embeds.items()}
            return answer if has_names else next(iter(answer.values()))
        logits = self.model.logit_scale.exp().float() * embeds["image_embeddings"] @ embeds["text_embeddings"].T
        scores = (logits + self.model.logit_bias.float()).sigmoid() if self.is_sigmoid else logits.softmax(dim=-1)
        answers = [
            [{"label": text, "score": score} for text, score in sorted(zip(texts, row), key=lambda pair: -pair[1])]
            for row in scores.tolist()
        ]
        return answers if isinstance(inputs.get("image"), list) else answers[0]

    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Return embeddings of shape `(images, dimension)`."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        features = self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.dtype)).pooler_output
        return features.float()

    def embed_texts(self, texts: list[str], truncate: bool = True) -> torch.Tensor:
        """Return embeddings of shape `(texts, dimension)`; texts that are too long are truncated or refused."""
        length = self.model.config.text_config.max_position_embeddings
        tokenizer = self.processor.tokenizer
        if not truncate:
            ids = tokenizer(texts, truncation=True, max_length=length + 1)["input_ids"]
            if max(map(len, ids)) > length:
                raise ValueError(f"A text is longer than the {length} tokens that the model reads.")
        padding = "max_length" if self.is_siglip else True
        inputs = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        names = ["input_ids"] if self.is_siglip else ["input_ids", "attention_mask"]
        features = self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names})
        return features.pooler_output.float()

    def read_images(self, images: list[Any]) -> list[Image.Image]:
        """Return upright RGB images from base64, bytes or PIL; sizes are checked before any image is decoded."""
        opened = [_open(image) for image in images]
        side, pixels = self.model.config.vision_config.image_size, 0.0
        for width, height in (image.size for image in opened):
            short, long = sorted((width, height))
            if long > LARGEST_RATIO * short:
                raise ValueError(
                    f"An image has {width} x {height} pixels; one side must be at most {LARGEST_RATIO} times the other."
                )
            # Image processors resize the shorter side to `side` before they crop.
            pixels += max(width * height, side * side * long / max(short, 1))
        if pixels > MOST_PIXELS:
            raise ValueError(f"The images of a request must have at most {MOST_PIXELS:,} pixels together.")
        return [_upright(image) for image in opened]


def _open(image: Any) -> Image.Image:
    if isinstance(image, str):
        image = _decode(image)
    if isinstance(image, bytes | bytearray):
        if len(image) > LARGEST_FILE:
            raise ValueError(f"An image must be at most {LARGEST_FILE // 2**20} MB.")
        try:
            image = Image.open(io.BytesIO(image))
        except Exception as error:  # broken files make PIL raise nearly anything
            raise ValueError(f"The image cannot be read: {error}") from error
    if not isinstance(image, Image.Image):
        raise ValueError(f"An image must be base64 or bytes, got {type(image).__name__}.")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"The image cannot be read: {error}") from error
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _option(parameters: dict[str, Any], name: str, default: Any, value_type: type) -> Any:
    """Remove a parameter and return its value; None, which clients send, is the default."""
    value = parameters.pop(name, None)
    if not isinstance(value, value_type | None):
        raise ValueError(f"`{name}` must be a {value_type.__name__}, got {type(value).__name__}.")
    return default if value is None else value


def _quoted(names: set[Any]) -> str:
    return ", ".join(sorted(repr(name)[:40] for name in names)[:5])


def _as_list(value: Any, name: str) -> list[Any]:
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if len(values) > MOST_ENTRIES:
        raise ValueError(f"`{name}` must have at most {MOST_ENTRIES} entries, got {len(values)}.")
    return values


def _decode(text: str) -> bytes:
    """Return the bytes of a base64 text with or without a `data:` header."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise ValueError("URLs are not fetched. Read the image, and send its bytes in base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) > LARGEST_FILE * 4 // 3 + 4096:
        raise ValueError(f"An image must be at most {LARGEST_FILE // 2**20} MB.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("The image is not base64.") from error
