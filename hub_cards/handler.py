"""Serves the model of this folder as a custom inference endpoint: scores of labels for an image, or embeddings.

This file travels with the model and runs where `fastgoal` is not installed.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoProcessor

LARGEST_FILE = 32 * 2**20  # bytes of an image
MOST_PIXELS = 2**26  # of all images of a request
LARGEST_RATIO = 200  # of the sides of an image: the shorter one is resized to the model's size before cropping
MOST = 64  # images or texts in a request
MOST_CHARACTERS = 100_000  # in all texts of a request
# What clients send beside `inputs` when they ask for embeddings.
EMBEDDING_PARAMETERS = (
    "normalize",
    "truncate",
    "prompt_name",
    "truncation_direction",
    "dimensions",
    "encoding_format",
)


class EndpointHandler:
    """Answers requests `{"inputs": ..., "parameters": ...}`, those of `huggingface_hub.InferenceClient` among them.

    `inputs` is an image, a text, a list of either, or `{"image": ..., "text": ...}` where each is one or a list. An
    image is base64 (with or without `data:image/...;base64,` in front), bytes or a PIL image. A string is an image
    inside `{"image": ...}` and where there are `candidate_labels`, as in the client's `zero_shot_image_classification`;
    elsewhere it is a text, as in its `feature_extraction`. Texts longer than the model reads are cut. Nothing is
    fetched: clients of the Hub read URLs themselves.

    `parameters`, of which those for embeddings may also stand beside `inputs`:

    * `candidate_labels`, a list of texts, or texts separated by commas, asks for scores of the image: probabilities
      among the labels, of a SigLIP of each label by itself;
    * `hypothesis_template` puts each label in place of its `{}`; labels are taken as they are without it;
    * `return` is `"scores"` or `"embeddings"`; by default scores where there are images and texts, else embeddings;
    * `normalize: false` leaves embeddings as they come from the model, `truncate: false` refuses longer texts.

    Answers: for scores a list of `{"label", "score"}`, best first, for each image (for a single image that list
    itself); for embeddings rows of numbers, and where `inputs` has names `{"image_embeddings": [...],
    "text_embeddings": [...]}`. A request that cannot be answered is a `ValueError`, of which an endpoint makes status
    400 and `{"error": "..."}`.

    Args:
        path: The model's folder.
    """

    def __init__(self, path: str = "") -> None:
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=False).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        self.processor.tokenizer.split_special_tokens = True  # a text that holds `<|endoftext|>` does not end there
        self.is_siglip = self.model.config.model_type == "siglip"  # which reads padding, up to the model's length

    def __call__(self, data: dict[str, Any]) -> Any:
        try:
            return self.answer(data)
        except ValueError:
            raise
        except Exception as error:  # whose words may say more of the machine than a client shall know
            raise ValueError(f"The request cannot be answered ({type(error).__name__}).") from error

    @torch.inference_mode()
    def answer(self, data: dict[str, Any]) -> Any:
        """As `__call__`, with whatever error there is."""
        if not isinstance(data, dict):
            raise ValueError(f'A request must be a JSON object with "inputs", got {type(data).__name__}.')
        inputs: Any = data.get("inputs")
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"`parameters` must be a JSON object, got {type(parameters).__name__}.")
        parameters = {**{name: data[name] for name in EMBEDDING_PARAMETERS if name in data}, **parameters}
        labels = parameters.pop("candidate_labels", None)
        named = isinstance(inputs, dict)
        if not named:
            is_text = isinstance(inputs, str) or (isinstance(inputs, list) and all(isinstance(x, str) for x in inputs))
            inputs = {"text" if is_text and labels is None else "image": inputs}
        labels = inputs.get("candidate_labels") if labels is None else labels
        if unknown := inputs.keys() - {"image", "text", "candidate_labels"}:
            raise ValueError(f"`inputs` may have the names image, text and candidate_labels, got {_shown(unknown)}.")
        if labels is not None and inputs.get("text") is not None:
            raise ValueError("A request has `text` or `candidate_labels`, got both.")
        images = self.read_images(_listed(inputs.get("image"), "image"))
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        texts = _listed(inputs.get("text") if labels is None else labels, "text")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("`text` and `candidate_labels` must be texts that are not empty.")
        if sum(map(len, texts)) > MOST_CHARACTERS:
            raise ValueError(f"The texts of a request may have {MOST_CHARACTERS:,} characters together.")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise ValueError("`text` and `candidate_labels` must be valid Unicode; one has half a character in it.")
        template = _option(parameters, "hypothesis_template", "{}", str)
        normalize = _option(parameters, "normalize", True, bool)
        truncate = _option(parameters, "truncate", True, bool)
        wanted = parameters.pop("return", "scores" if images and texts else "embeddings")
        if unknown := {name for name, value in parameters.items() if value is not None}:
            raise ValueError(f"The parameters {_shown(unknown)} are not known here.")
        if template.count("{}") != 1 or len(template) * len(texts) > MOST_CHARACTERS:
            raise ValueError("`hypothesis_template` must be a short text with one {} in it, where the label goes.")
        if wanted not in ("scores", "embeddings"):
            raise ValueError(f"`return` must be 'scores' or 'embeddings', got {wanted!r}.")
        if not images and not texts:
            raise ValueError('The request has neither images nor texts. Send {"inputs": {"image": ..., "text": ...}}.')
        if wanted == "scores" and not (images and texts):
            raise ValueError("Scores need at least one image and one text (or `candidate_labels`).")

        text_embeds = self.embed_texts([template.replace("{}", text) for text in texts], truncate) if texts else None
        image_embeds = self.embed_images(images) if images else None
        embeds: dict[str, Any] = {"image_embeddings": image_embeds, "text_embeddings": text_embeds}
        if normalize or wanted == "scores":
            normalized = torch.nn.functional.normalize
            embeds = {name: None if rows is None else normalized(rows, dim=-1) for name, rows in embeds.items()}
        if wanted == "embeddings":
            answer = {name: rows.tolist() for name, rows in embeds.items() if rows is not None}
            return answer if named else next(iter(answer.values()))
        logits = self.model.logit_scale.exp().float() * embeds["image_embeddings"] @ embeds["text_embeddings"].T
        if self.is_siglip:  # each label by itself, as it was trained
            scores = (logits + self.model.logit_bias.float()).sigmoid().tolist()
        else:
            scores = logits.softmax(dim=-1).tolist()
        answers = [
            [{"label": text, "score": score} for text, score in sorted(zip(texts, row), key=lambda pair: -pair[1])]
            for row in scores
        ]
        return answers if isinstance(inputs.get("image"), list) else answers[0]

    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Embeddings `(images, width)`."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        features = self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.dtype)).pooler_output
        return features.float()

    def embed_texts(self, texts: list[str], truncate: bool = True) -> torch.Tensor:
        """Embeddings `(texts, width)`; longer texts than the model reads are cut, or refused."""
        length = self.model.config.text_config.max_position_embeddings
        tokenizer = self.processor.tokenizer
        if not truncate:
            ids = tokenizer(texts, truncation=True, max_length=length + 1)["input_ids"]
            if max(map(len, ids)) > length:
                raise ValueError(f"A text has more than the {length} tokens that the model reads.")
        padding = "max_length" if self.is_siglip else True
        inputs = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        names = ["input_ids"] if self.is_siglip else ["input_ids", "attention_mask"]
        features = self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names})
        return features.pooler_output.float()

    def read_images(self, images: list[Any]) -> list[Image.Image]:
        """Images from base64, bytes or PIL, upright and RGB; none is decoded before its size is known."""
        opened = [_open(image) for image in images]
        for image in opened:
            if max(image.size) > LARGEST_RATIO * min(image.size):
                width, height = image.size
                raise ValueError(
                    f"An image is {width} x {height} pixels; one side may be {LARGEST_RATIO} times the other."
                )
        if sum(image.width * image.height for image in opened) > MOST_PIXELS:
            raise ValueError(f"The images of a request may have {MOST_PIXELS:,} pixels together.")
        return [_upright(image) for image in opened]


def _open(image: Any) -> Image.Image:
    if isinstance(image, str):
        image = _decode(image)
    if isinstance(image, bytes | bytearray):
        if len(image) > LARGEST_FILE:
            raise ValueError(f"The image is larger than {LARGEST_FILE // 2**20} MB.")
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


def _option(parameters: dict[str, Any], name: str, default: Any, kind: type) -> Any:
    """Take a parameter out; None, as clients send, is the default."""
    value = parameters.pop(name, None)
    if not isinstance(value, kind | None):
        raise ValueError(f"`{name}` must be a {kind.__name__}, got {type(value).__name__}.")
    return default if value is None else value


def _shown(names: set[Any]) -> str:
    return ", ".join(sorted(repr(name)[:40] for name in names)[:5])


def _listed(value: Any, name: str) -> list[Any]:
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if len(values) > MOST:
        raise ValueError(f"A request may have {MOST} entries in `{name}`, got {len(values)}.")
    return values


def _decode(text: str) -> bytes:
    """Bytes of a base64 text, with or without a `data:` header."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise ValueError("Addresses are not fetched here: read the image, and send its bytes in base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) > LARGEST_FILE * 4 // 3 + 4096:
        raise ValueError(f"The image is larger than {LARGEST_FILE // 2**20} MB.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("The image is not base64.") from error
