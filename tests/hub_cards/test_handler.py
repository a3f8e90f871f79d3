"""The endpoint's handler, loaded from the folder of a model, answers with the scores and embeddings of the model."""

import base64
import importlib.util
import io
import json
import re
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import fastgoal.hub_cards.handler
from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalSiglipModel
from fastgoal.processing import images

SOURCE = Path(fastgoal.hub_cards.handler.__file__).read_text(encoding="utf-8")
IMAGE = Image.radial_gradient("L").convert("RGB").resize((60, 40))
LONG = "A red cup stands on a table. " * 40
LABELS = ["a red cup", LONG]


def png(image=IMAGE, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def handler(trained):
    spec = importlib.util.spec_from_file_location("handler", trained / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(trained))


@pytest.fixture(scope="module")
def expected(trained):
    model, processor = FastGoalCLIPModel.from_pretrained(trained), FastGoalProcessor.from_pretrained(trained)
    with torch.no_grad():
        return model(**processor(images=IMAGE, text=LABELS))


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        png(),
        base64.b64encode(png()).decode(),
        base64.encodebytes(png()).decode(),
        "data:image/png;base64," + base64.b64encode(png()).decode(),
    ],
    ids=["pil", "bytes", "base64", "base64 in lines", "data url"],
)
@pytest.mark.parametrize("named", [True, False])
def test_scores_of_an_image(handler, expected, image, named):
    answer = handler({"inputs": {"image": image} if named else image, "parameters": {"candidate_labels": LABELS}})
    json.dumps(answer)
    scores = {entry["label"]: entry["score"] for entry in answer}
    probabilities = expected.logits_per_image.softmax(dim=-1)[0].tolist()
    assert scores == pytest.approx(dict(zip(LABELS, probabilities, strict=True)), abs=1e-5)
    assert answer[0]["score"] >= answer[1]["score"]


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
def test_a_siglip_scores_as_it_was_trained(tiny_bases, contrastive, tmp_path):
    model = FastGoalSiglipModel.from_base(tiny_bases["siglip"], max_text_length=64)
    model.config.contrastive = contrastive
    model.save_pretrained(tmp_path)
    FastGoalProcessor.from_base(tiny_bases["siglip"], max_text_length=64).save_pretrained(tmp_path)
    answer = fastgoal.hub_cards.handler.EndpointHandler(str(tmp_path))(
        {"inputs": png(), "parameters": {"candidate_labels": ["a red cup", "a blue cup"]}}
    )
    inputs = FastGoalProcessor.from_pretrained(tmp_path)(images=IMAGE, text=["a red cup", "a blue cup"])
    with torch.no_grad():
        logits = model.eval()(**inputs).logits_per_image[0]
    scores = logits.softmax(0) if contrastive == "softmax" else logits.sigmoid()
    assert {row["label"]: row["score"] for row in answer} == pytest.approx(
        dict(zip(["a red cup", "a blue cup"], scores.tolist(), strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "https://example.com/a.png", "HTTP://[64:ff9b::1]/"])
def test_urls_are_not_fetched(handler, address, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a URL was fetched"))
    for inputs in ({"image": address}, {"image": [png(), address], "text": LABELS}):
        with pytest.raises(ValueError, match="URLs are not fetched"):
            handler({"inputs": inputs})
    assert not {"socket", "urllib", "requests", "httpx"} & set(re.findall(r"^import (\w+)", SOURCE, re.MULTILINE))


def test_embeddings(handler, expected):
    torch.testing.assert_close(torch.tensor(handler({"inputs": LABELS})), expected.text_embeds)
    torch.testing.assert_close(torch.tensor(handler({"inputs": png()})), expected.image_embeds)
    named = handler({"inputs": {"text": LABELS}})
    torch.testing.assert_close(torch.tensor(named["text_embeddings"]), expected.text_embeds)
    both = handler({"inputs": {"image": [png()], "text": LABELS[0]}, "parameters": {"return": "embeddings"}})
    assert both.keys() == {"image_embeddings", "text_embeddings"}
    assert torch.tensor(both["text_embeddings"]).shape == (1, 16)


def test_several_images(handler):
    answer = handler({"inputs": {"image": [png(), png()]}, "parameters": {"candidate_labels": "a cup, a dog,"}})
    assert [{entry["label"] for entry in row} for row in answer] == [{"a cup", "a dog"}] * 2
    assert answer[0] == answer[1]


def test_images_are_upright_and_on_white(handler):
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    assert handler.read_images([png(turned, exif=exif)])[0].size == (2, 4)
    clear = handler.read_images([png(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))])[0]
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def header(width, height):
    """A PNG file that has this size in its header, and hardly any pixels."""
    content = bytearray(png(Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_long_images_count_with_the_pixels_that_resizing_makes(handler, monkeypatch):
    longest = png(Image.new("L", (images.LARGEST_RATIO, 1)))
    assert [image.size for image in handler.read_images([longest])] == [(images.LARGEST_RATIO, 1)]
    assert fastgoal.hub_cards.handler.LARGEST_RATIO == images.LARGEST_RATIO
    monkeypatch.setattr(handler.model.config.vision_config, "image_size", 224)
    assert len(handler.read_images([longest] * 6)) == 6
    with pytest.raises(ValueError, match="67,108,864 pixels"):
        handler.read_images([longest] * 7)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "neither images nor texts"),
        ({"inputs": {"image": "no base64!"}}, "is not base64"),
        ({"inputs": {"image": 3}}, "got int"),
        ({"inputs": {"image": png()[:40]}}, "cannot be read"),
        ({"inputs": {"text": ["a cup", ""]}}, "non-empty"),
        ({"inputs": "a cup", "parameters": {"return": "scores"}}, "at least one image"),
        ({"inputs": "a cup", "parameters": {"return": "poems"}}, "'poems'"),
        ({"inputs": ["a cup"] * 65}, "at most 64 entries"),
        ({"inputs": ["x" * 2_000_000] * 64}, "100,000 characters"),
        ({"inputs": {"text": "half \ud800"}}, "valid Unicode"),
        ({"inputs": {"image": header(20_000, 1)}}, "20000 x 1 pixels; one side must be at most 200 times"),
        ({"inputs": {"image": header(1, 65_000)}}, "1 x 65000 pixels"),
        ({"inputs": {"image": header(9_000, 9_000)}}, "67,108,864 pixels"),
        ({"inputs": {"image": [header(6_000, 6_000)] * 2}}, "67,108,864 pixels"),
        ({"inputs": {"image": [header(60, 12_001)]}}, "60 x 12001 pixels"),
        ({"inputs": {"image": header(60_000, 60_000)}}, "cannot be read"),
        ({"inputs": {"image": b"\0" * (2**25 + 1)}}, "at most 32 MB"),
        ({"inputs": {"image": "A" * (2**26)}}, "at most 32 MB"),
        ({"inputs": {"image": {"bytes": 3}}}, "got dict"),
        ({"inputs": {"image": [[[]]]}}, "got list"),
        ({"inputs": {"image": png(), "text": [1, 2]}}, "must be non-empty texts"),
        ({"inputs": {"image": png()}, "parameters": {"candidate_labels": 7}}, "must be non-empty texts"),
        ({"inputs": {"image": png()}, "parameters": {"candidate_labels": {"a": 1}}}, "must be non-empty texts"),
        ({"inputs": "a cup", "parameters": ["return"]}, "`parameters` must be a JSON object, got list"),
        ({"inputs": "a cup", "parameters": {"return": ["scores"]}}, "must be 'scores' or"),
        ({"inputs": "a cup", "truncate": "no"}, "`truncate` must be a bool, got str"),
        ({"inputs": LONG, "truncate": False}, "longer than the 248 tokens"),
        ({"inputs": "a cup", "dimensions": 3}, "Unknown parameters: 'dimensions'"),
        ({"inputs": "a cup", "parameters": {"max_new_tokens": 3}}, "'max_new_tokens'"),
        ({"inputs": {"question": "a cup?", "image": png()}}, "got 'question'"),
        ({"inputs": {"image": png(), "text": "a"}, "parameters": {"candidate_labels": "a, b"}}, "got both"),
        ({"inputs": "a red cup", "parameters": {"candidate_labels": "a, b"}}, "is not base64"),
        ({"inputs": png(), "parameters": {"candidate_labels": "a", "hypothesis_template": "a"}}, "one {}, which"),
        (["inputs"], "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
def test_invalid_requests_are_refused(handler, request_, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        handler(request_)


def test_an_unexpected_error_tells_its_type_only(handler, monkeypatch):
    monkeypatch.setattr(handler, "embed_texts", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"^The request failed \(ZeroDivisionError\)\.$"):
        handler({"inputs": "a cup"})


@pytest.fixture
def endpoint(handler, monkeypatch):
    """The handler behind HTTP, as in an inference endpoint: its answer, or status 400 and its error."""

    class Requests(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_image = self.headers["Content-Type"].startswith("image/")
            try:
                status, answer = (
                    200,
                    handler({"inputs": Image.open(io.BytesIO(body))} if is_image else json.loads(body)),
                )
            except Exception as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it connects to this machine only
    with ThreadingHTTPServer(("127.0.0.1", 0), Requests) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield InferenceClient(model=f"http://127.0.0.1:{server.server_port}", token="none")
        server.shutdown()


def test_the_client_of_the_hub_gets_scores_and_embeddings(endpoint, expected, tmp_path):
    (tmp_path / "photo.png").write_bytes(png())
    for image in (png(), tmp_path / "photo.png"):
        found = endpoint.zero_shot_image_classification(image, candidate_labels=LABELS)
        scores = {element.label: element.score for element in found}
        probabilities = expected.logits_per_image.softmax(dim=-1)[0].tolist()
        assert scores == pytest.approx(dict(zip(LABELS, probabilities, strict=True)), abs=1e-5)

    assert endpoint.feature_extraction(LABELS[0]).shape == (1, 16)
    np.testing.assert_allclose(endpoint.feature_extraction(LABELS), expected.text_embeds, atol=1e-6)
    raw = endpoint.feature_extraction(LABELS, normalize=False)
    assert np.linalg.norm(raw, axis=1) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), expected.text_embeds, atol=1e-6)


def test_the_template_surrounds_each_label(endpoint):
    labels = ["a cup", "a dog"]
    found = endpoint.zero_shot_image_classification(png(), candidate_labels=labels, hypothesis_template="Here is {}.")
    whole = endpoint.zero_shot_image_classification(png(), candidate_labels=["Here is a cup.", "Here is a dog."])
    assert [element.label for element in found] == [element.label[8:-1] for element in whole]
    assert [element.score for element in found] == pytest.approx([element.score for element in whole])


def test_the_client_shows_what_is_wrong(endpoint):
    with pytest.raises(HfHubHTTPError, match="'top_k'"):
        endpoint.image_classification(png(), top_k=3)
    with pytest.raises(HfHubHTTPError, match="The image cannot be read"):
        endpoint.zero_shot_image_classification(b"no image", candidate_labels=["a", "b"])
    with pytest.raises(HfHubHTTPError, match="'dimensions'"):
        endpoint.feature_extraction("a cup", dimensions=3)


def test_the_largest_request_is_truncated_in_seconds(handler):
    started = time.monotonic()
    assert len(handler({"inputs": ["x" * 50_000, "a b. " * 10_000]})) == 2
    assert time.monotonic() - started < 20
