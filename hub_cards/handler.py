"""Serves the model of this folder as a custom inference endpoint: scores of labels for an image, or embeddings.

This file travels with the model and runs where `fastgoal` is not installed.
"""

import base64
import binascii
import io
import ipaddress
import socket
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoModel, AutoProcessor

LARGEST_FILE = 32 * 2**20  # bytes
TIMEOUT = 10.0  # seconds
MOST = 64  # images or texts in a request


class EndpointHandler:
    """Answers requests `{"inputs": ..., "parameters": ...}`.

    `inputs` is an image, a text, a list of texts, or `{"image": ..., "text": ...}` where each is one or a list. An
    image is a URL, base64 (with or without `data:image/...;base64,` in front), bytes or a PIL image; only inside
    `{"image": ...}` a string is an image, elsewhere it is a text. Texts longer than the model reads are cut.

    `parameters`: `candidate_labels` (a list of texts, or texts separated by commas) asks for scores of the image, and
    `return` is `"scores"` or `"embeddings"`; by default scores where there are images and texts, else embeddings.

    Answers: for scores a list of `{"label", "score"}`, best first, for each image (for a single image that list
    itself); for embeddings `{"image_embeddings": [...], "text_embeddings": [...]}`, normalised; for a request that
    cannot be answered `{"error": "..."}`.

    Args:
        path: The model's folder.
    """

    # An address inside the endpoint's own network is refused: a request must not read what only the server can.
    allow_private_addresses = False

    def __init__(self, path: str = "") -> None:
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(path)

    def __call__(self, data: dict[str, Any]) -> Any:
        try:
            return self.answer(data)
        except ValueError as error:
            return {"error": str(error)}

    @torch.inference_mode()
    def answer(self, data: dict[str, Any]) -> Any:
        """As `__call__`, but raises `ValueError` for a request that cannot be answered."""
        inputs = data.get("inputs", data)
        parameters = data.get("parameters") or {}
        if not isinstance(inputs, dict):
            is_text = isinstance(inputs, str) or (isinstance(inputs, list) and all(isinstance(x, str) for x in inputs))
            inputs = {"text" if is_text else "image": inputs}
        images = [self.read_image(image) for image in _listed(inputs.get("image"), "image")]
        labels = parameters.get("candidate_labels", inputs.get("candidate_labels"))
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        texts = _listed(inputs.get("text") if labels is None else labels, "text")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("`text` and `candidate_labels` must be texts that are not empty.")
        wanted = parameters.get("return", "scores" if images and texts else "embeddings")
        if wanted not in ("scores", "embeddings"):
            raise ValueError(f"`return` must be 'scores' or 'embeddings', got {wanted!r}.")
        if not images and not texts:
            raise ValueError('The request has neither images nor texts. Send {"inputs": {"image": ..., "text": ...}}.')
        if wanted == "scores" and not (images and texts):
            raise ValueError("Scores need at least one image and one text (or `candidate_labels`).")

        if wanted == "embeddings":
            named = {
                "image_embeddings": self.embed_images(images) if images else None,
                "text_embeddings": self.embed_texts(texts) if texts else None,
            }
            return {name: embeds.tolist() for name, embeds in named.items() if embeds is not None}
        image_embeds, text_embeds = self.embed_images(images), self.embed_texts(texts)
        scores = (self.model.logit_scale.exp().float() * image_embeds @ text_embeds.T).softmax(dim=-1).tolist()
        answers = [
            [{"label": text, "score": score} for text, score in sorted(zip(texts, row), key=lambda pair: -pair[1])]
            for row in scores
        ]
        return answers if isinstance(inputs.get("image"), list) else answers[0]

    def embed_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Normalised embeddings `(images, width)`."""
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        features = self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.dtype)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Normalised embeddings `(texts, width)`; longer texts than the model reads are cut."""
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.processor(text=texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        inputs = inputs.to(self.device)
        features = self.model.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def read_image(self, image: Any) -> Image.Image:
        """An image from a URL, base64, bytes or PIL, upright and RGB."""
        if isinstance(image, str):
            image = self.download(image) if image.startswith(("http://", "https://")) else _decode(image)
        if isinstance(image, bytes | bytearray):
            try:
                image = Image.open(io.BytesIO(image))
                image.load()
            except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"The image cannot be read: {error}") from error
        if not isinstance(image, Image.Image):
            raise ValueError(f"An image must be a URL, base64 or bytes, got {type(image).__name__}.")
        image = ImageOps.exif_transpose(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")

    def download(self, url: str) -> bytes:
        """The bytes behind a public http(s) address."""
        handler = self

        class CheckedRedirects(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
                handler.check_address(newurl)
                return super().redirect_request(req, fp, code, msg, headers, newurl)

        self.check_address(url)
        opener = urllib.request.build_opener(CheckedRedirects, urllib.request.ProxyHandler({}))
        try:
            with opener.open(urllib.request.Request(url, headers={"User-Agent": "fastgoal"}), timeout=TIMEOUT) as file:
                data: bytes = file.read(LARGEST_FILE + 1)
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(f"The image at {url} cannot be fetched: {error}") from error
        if len(data) > LARGEST_FILE:
            raise ValueError(f"The image at {url} is larger than {LARGEST_FILE // 2**20} MB.")
        return data

    def check_address(self, url: str) -> None:
        """Refuse addresses that are not http(s) or not public."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The image's address must begin with http:// or https://, got {url!r}.")
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(parts.hostname, None)}
        except OSError as error:
            raise ValueError(f"The image's address {url!r} is not known: {error}") from error
        if not self.allow_private_addresses and not all(ipaddress.ip_address(host).is_global for host in found):
            raise ValueError(f"The image's address {url!r} is not public; it is not fetched.")


def _listed(value: Any, name: str) -> list[Any]:
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if len(values) > MOST:
        raise ValueError(f"A request may have {MOST} entries in `{name}`, got {len(values)}.")
    return values


def _decode(text: str) -> bytes:
    """Bytes of a base64 text, with or without a `data:` header."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) > LARGEST_FILE * 4 // 3:
        raise ValueError(f"The image is larger than {LARGEST_FILE // 2**20} MB.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("The image is neither an http(s) address nor base64.") from error
