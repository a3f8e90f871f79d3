"""The endpoint's handler, loaded from a model's folder as a plain class, answers what the model says."""

import base64
import importlib.util
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from PIL import Image

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

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


@pytest.fixture
def web():
    """A server with a picture, a page that sends to another place, and a page that is no picture."""

    class Page(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            places = {"/elsewhere": "/picture", "/file": "file:///etc/hostname"}
            self.send_response(302 if self.path in places else 200)
            if self.path in places:
                self.send_header("Location", places[self.path])
            content = b"hello" if self.path == "/text" else png()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


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
def test_scores_of_an_image(handler, expected, image):
    answer = handler({"inputs": {"image": image}, "parameters": {"candidate_labels": LABELS}})
    json.dumps(answer)
    scores = {entry["label"]: entry["score"] for entry in answer}
    probabilities = expected.logits_per_image.softmax(dim=-1)[0].tolist()
    assert scores == pytest.approx(dict(zip(LABELS, probabilities, strict=True)), abs=1e-5)
    assert answer[0]["score"] >= answer[1]["score"]


def test_an_image_by_address(handler, expected, web, monkeypatch):
    request = {"inputs": {"image": f"{web}/picture", "text": LABELS}}
    assert "is not public" in handler(request)["error"]
    monkeypatch.setattr(handler, "allow_private_addresses", True)
    scores = {entry["label"]: entry["score"] for entry in handler(request)}
    assert scores[LONG] == pytest.approx(expected.logits_per_image.softmax(dim=-1)[0, 1].item(), abs=1e-5)
    assert "'file:///etc/hostname' is not allowed" in handler({"inputs": {"image": f"{web}/file"}})["error"]
    assert "must begin with http" in handler({"inputs": {"image": "https:///picture"}})["error"]
    assert "cannot be read" in handler({"inputs": {"image": f"{web}/text"}})["error"]
    assert "cannot be fetched" in handler({"inputs": {"image": "http://127.0.0.1:1/"}})["error"]
    checked = []
    monkeypatch.setattr(handler, "check_address", checked.append)
    assert handler.download(f"{web}/elsewhere") == png()
    assert checked == [f"{web}/elsewhere", f"{web}/picture"]


def test_embeddings(handler, expected):
    texts = handler({"inputs": LABELS})
    torch.testing.assert_close(torch.tensor(texts["text_embeddings"]), expected.text_embeds)
    images = handler({"inputs": png()})
    torch.testing.assert_close(torch.tensor(images["image_embeddings"]), expected.image_embeds)
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
    exif[0x0112] = 6  # to be turned by a quarter
    assert handler.read_image(png(turned, exif=exif)).size == (2, 4)
    clear = handler.read_image(png(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))
    assert clear.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "neither images nor texts"),
        ({"inputs": {"image": "no base64!"}}, "neither an http"),
        ({"inputs": {"image": 3}}, "got int"),
        ({"inputs": {"image": png()[:40]}}, "cannot be read"),
        ({"inputs": {"text": ["a cup", ""]}}, "not empty"),
        ({"inputs": "a cup", "parameters": {"return": "scores"}}, "at least one image"),
        ({"inputs": "a cup", "parameters": {"return": "poems"}}, "'poems'"),
        ({"inputs": ["a cup"] * 65}, "may have 64 entries"),
    ],
)
def test_requests_that_cannot_be_answered(handler, request_, words):
    assert words in handler(request_)["error"]
