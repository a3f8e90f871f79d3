"""Captions from a small server that knows the color of an image, and that fails, hangs and limits rates."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from fastgoal.cli import main
from fastgoal.processing.builders import caption_server
from fastgoal.processing.builders.caption_server import ServerCaptioner
from fastgoal.processing.builders.captioner import RefusedError
from fastgoal.processing.builders.captions import CaptionSettings, write_captions
from fastgoal.processing.data.image_folder import open_images
from tests.bad_servers import BROKEN, NEVER_DONE, TOO_LARGE, WRONG, RawServer, redirect, whole
from tests.bad_servers import completion as raw_completion

from .test_captions import paint, rows_of

SETTINGS = CaptionSettings("vlm", "What color is it?", dtype="the server's")


class Server(ThreadingHTTPServer):
    """Answers chat completions; `act(number, red)` may answer in its place, by number of the request and color."""

    daemon_threads = True

    def __init__(self, act=None, pause=0.0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.act, self.pause = act or (lambda number, red: None), pause
        self.lock, self.requests, self.images, self.headers = threading.Lock(), [], [], []
        self.now = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        """A client that gave up is no news."""

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content, question = request["messages"][0]["content"]
        image = Image.open(io.BytesIO(base64.b64decode(content["image_url"]["url"].partition("base64,")[2])))
        red = round(image.convert("RGB").getpixel((image.width // 2, image.height // 2))[0] / 20)
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.images.append((image.size, dict(image.getexif())))
            server.headers.append(self.headers)
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.pause)
        with server.lock:
            server.now -= 1
        assert question == {"type": "text", "text": "What color is it?"}
        status, body, headers = server.act(number, red) or (200, completion(f"Red {red}. It is a picture."), {})
        if status is None:  # the connection breaks
            self.close_connection = True
            return
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def completion(text, finish="stop"):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "vlm", "choices": [choice]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(caption_server, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(caption_server, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def photographs(tmp_path):
    """Pictures 000.png to 011.png, the red of each twenty times its number."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 12), (20 * number, 128, 128)).save(folder / f"{number:03d}.png")
    return folder


def build(photographs, output, server, settings=SETTINGS, on_error="stop", **options):
    options = {"prompt": settings.prompt, "at_once": 4, "timeout": 30, **options}
    url = server if isinstance(server, str) else server.url
    with closing(ServerCaptioner(url, "vlm", **options)) as captioner:
        return write_captions(
            open_images(photographs), output, settings, lambda: captioner, on_error, batch_size=4, progress=False
        )


def expected(numbers):
    return [
        {"file_name": f"{number:03d}.png", "caption": f"Red {number}. It is a picture.", "finish": "stop"}
        for number in numbers
    ]


def test_every_image_gets_its_own_caption_and_many_are_asked_at_once(photographs, tmp_path):
    with Server(pause=0.15) as server:
        summary = build(photographs, tmp_path / "out", server)
    assert rows_of(tmp_path / "out") == expected(range(12))
    assert (summary["images"], summary["made"], summary["cut"]) == (12, 12, 0)
    assert server.most == 4
    assert all(request["model"] == "vlm" and request["max_tokens"] == 512 for request in server.requests)
    assert all(request["temperature"] == 0 and "seed" not in request for request in server.requests)


def test_requests_to_a_failing_server_are_repeated(photographs, tmp_path):
    ways = [
        (500, b"out of order", {}),
        (503, b"", {"Retry-After": "0"}),
        (None, b"", {}),
        (429, {"error": "slow down"}, {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}),
        (502, b"<html>", {"Retry-After": "soon"}),
    ]

    def act(number, red):
        return ways[number // 2 % 5] if number % 2 else None

    with Server(act) as server:
        build(photographs, tmp_path / "out", server)
    assert rows_of(tmp_path / "out") == expected(range(12))
    assert len(server.requests) >= 20


@pytest.mark.parametrize(
    "header", ["0", *(pytest.param(text, marks=pytest.mark.slow) for text in ("-5", "nan", "inf", "soon"))]
)
def test_a_busy_server_gets_few_requests(photographs, tmp_path, header):
    since = time.monotonic()
    with Server(lambda number, red: (503, b"loading", {"Retry-After": header}) if number < 8 else None) as server:
        build(photographs, tmp_path / "out", server, at_once=1, patience=3)
    assert len(server.requests) == 12 + 8
    assert time.monotonic() - since > 8 * 0.01  # more than without a pause between them


def test_a_server_that_loads_its_model(photographs, tmp_path):
    began = time.monotonic()
    with Server(lambda *_: (503, b"loading", {}) if time.monotonic() - began < 1 else None) as server:
        build(photographs, tmp_path / "out", server, patience=10)  # a twentieth of it is less
    assert rows_of(tmp_path / "out") == expected(range(12))


def test_requests_time_out(photographs, tmp_path):
    seen = set()

    def act(number, red):
        if red % 3 == 0 and red not in seen:
            seen.add(red)
            time.sleep(2)

    with Server(act) as server:
        build(photographs, tmp_path / "out", server, timeout=0.5)
    assert rows_of(tmp_path / "out") == expected(range(12))
    assert len(server.requests) == 12 + 4


def test_rate_limits_are_kept(photographs, tmp_path):
    allowed = []

    def act(number, red):
        now = time.monotonic()
        if len([moment for moment in allowed if now - moment < 1.0]) >= 4:
            return 429, {"error": "rate limit"}, {"Retry-After": "1"}
        allowed.append(now)

    with Server(act) as server:
        build(photographs, tmp_path / "out", server)
    assert rows_of(tmp_path / "out") == expected(range(12))
    # One refused request stops all the others for as long as it was told.
    assert len(server.requests) <= 12 + 3 * 4


def test_a_failure_keeps_finished_captions_and_the_next_run_requests_the_rest(photographs, tmp_path):
    with (
        Server(lambda number, red: (404, b"gone", {}) if red == 6 else None) as server,
        pytest.raises(ValueError, match=r"model 'vlm': 404 gone .*`server`"),
    ):
        build(photographs, tmp_path / "out", server)
    with Server() as server:
        summary = build(photographs, tmp_path / "out", server)
    assert rows_of(tmp_path / "out") == expected(range(12))
    assert summary["made"] == len(server.requests) == 6


def test_a_batch_that_fails_twice_loses_nothing(photographs, tmp_path):
    for failing in (2, 5, 7):
        with (
            Server(lambda number, red, failing=failing: (404, b"", {}) if red == failing else None) as server,
            pytest.raises(ValueError, match="model 'vlm': 404"),
        ):
            build(photographs, tmp_path / "out", server, at_once=1)
    with Server() as server:
        build(photographs, tmp_path / "out", server)
    assert rows_of(tmp_path / "out") == expected(range(12))
    assert len(server.requests) == 5


def test_images_that_the_server_refuses(photographs, tmp_path):
    def act(number, red):
        return (400, {"message": "cannot read this image"}, {}) if red in (3, 4) else None

    with Server(act) as server:
        with pytest.raises(ValueError, match=r"003.png.*refuses this image: 400 .*cannot read this.*`on_error=skip`"):
            build(photographs, tmp_path / "out", server)
        summary = build(photographs, tmp_path / "out", server, on_error="skip")
    assert rows_of(tmp_path / "out") == expected([n for n in range(12) if n not in (3, 4)])
    assert [entry["row"] for entry in summary["skipped"]] == [3, 4]
    with (
        Server(lambda number, red: (422, b"no images here", {})) as server,
        pytest.raises(ValueError, match=r"refuses all of the first 1\d images: 422 no images here"),
    ):
        build(photographs, tmp_path / "none", server, on_error="skip")


def test_answers_of_the_model(photographs, tmp_path):
    answers = {
        0: completion("<think>\nA picture. Red?\n</think>\n\nIt is red."),
        1: completion("One sentence. And half of anoth", "length"),
        2: completion(None),
        3: completion(" \n"),
        4: completion("half \ud800"),
    }
    with Server(lambda number, red: (200, answers.get(red, completion("Fine.")), {})) as server:
        summary = build(photographs, tmp_path / "out", server, on_error="skip")
    found = {row["file_name"]: (row["caption"], row["finish"]) for row in rows_of(tmp_path / "out")}
    assert found["000.png"] == ("It is red.", "stop")
    assert found["001.png"] == ("One sentence.", "length")
    assert [entry["row"] for entry in summary["skipped"]] == [2, 3, 4]
    assert "004.png: the model wrote an unpaired surrogate" in summary["skipped"][2]["reason"]
    assert "wrote nothing about this image" in summary["skipped"][0]["reason"]


@pytest.mark.parametrize(
    "body",
    [b"<html>hello</html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": 7}', b"\xff", b""],
)
def test_invalid_answers(photographs, tmp_path, body):
    with (
        Server(lambda number, red: (200, body, {})) as server,
        pytest.raises(ValueError, match=r"OpenAI's chat completions: .* Check the address"),
    ):
        build(photographs, tmp_path / "out", server, patience=5)


def ask(server, **options):
    """Return the caption of a small image."""
    with closing(ServerCaptioner(server.url, "vlm", "What color is it?", **options)) as captioner:
        return captioner.submit(Image.new("RGB", (8, 8))).result(timeout=20)


@pytest.mark.parametrize("name", NEVER_DONE)
def test_the_timeout_is_for_the_whole_answer(name):
    since = time.monotonic()
    with RawServer(NEVER_DONE[name]) as server, pytest.raises(OSError, match=r"no complete answer after 0\.2 s"):
        ask(server, timeout=0.2, patience=8)  # a twentieth of it, since the server never answers
    assert time.monotonic() - since < 4
    assert len(server.requests) >= 2


@pytest.mark.parametrize("name", TOO_LARGE)
def test_long_answers_are_not_read(name):
    with RawServer(TOO_LARGE[name]) as server, pytest.raises(ValueError, match=f"`server={server.url}` .*4 MB"):
        ask(server)
    assert server.sent < 40 * 2**20  # buffers of the connection included


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers_are_requested_again(name):
    with RawServer(BROKEN[name]) as server, pytest.raises(OSError, match=r"`server=.*` has not answered for .*Error"):
        ask(server, patience=5)
    assert len(server.requests) >= 2


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_end_the_run(name):
    with RawServer(WRONG[name]) as server, pytest.raises(ValueError, match=f"`server={server.url}` ") as error:
        ask(server)
    assert len(server.requests) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_an_image_is_not_sent_where_a_server_redirects(status):
    with RawServer(whole(raw_completion())) as other, RawServer(lambda send: None) as server:
        for target in (
            other.url,
            other.url.replace("127.0.0.1", "localhost"),
            f"//127.0.0.1:{other.server_address[1]}",
        ):
            server.answer = redirect(f"{target}/v1/chat/completions", status)
            with pytest.raises(ValueError, match=f"`server={server.url}` redirects to {target}"):
                ask(server)
        assert not other.requests
        server.answer = other.answer
        assert ask(server).text == "A red square."


def test_a_caption_has_no_more_characters_than_its_tokens(photographs, tmp_path):
    def act(number, red):
        return (200, completion("x" * 2001), {}) if red == 3 else None

    with Server(act) as server:
        with pytest.raises(ValueError, match=r"003\.png.*2,001 characters.*`max_new_tokens=20`.*`on_error=skip`"):
            build(photographs, tmp_path / "out", server, max_new_tokens=20)
        summary = build(photographs, tmp_path / "out", server, on_error="skip", max_new_tokens=20)
    assert rows_of(tmp_path / "out") == expected([n for n in range(12) if n != 3])
    assert [entry["row"] for entry in summary["skipped"]] == [3]


def test_a_server_that_cannot_be_reached(photographs, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        since = time.monotonic()
        with pytest.raises(OSError, match=f"`server` .*{url}.*no connection.*Start the server"):
            build(photographs, tmp_path / "out", url)
        assert time.monotonic() - since < 5
    for wrong in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(ValueError, match=f"`server` must be a URL .*'{wrong}'"):
            ServerCaptioner(wrong, "vlm")


def test_a_server_that_restarts_is_waited_for():
    def act(number, red):
        return 200, completion("A dog."), {"Connection": "close"}

    with Server(act) as server:
        captioner = ServerCaptioner(server.url, "vlm", "What color is it?")
        assert captioner.submit(Image.new("RGB", (8, 8))).result(timeout=20).text == "A dog."
    with closing(captioner):
        second = captioner.submit(Image.new("RGB", (8, 8)))
        time.sleep(0.2)
        assert not second.done()
        with Server(act, port=server.server_port):
            assert second.result(timeout=20).text == "A dog."


def test_markdown_is_removed_and_counted(photographs, tmp_path):
    def act(number, red):
        return 200, completion(f"## Red\n\n- **{red}**" if red % 2 else f"Red {red}."), {}

    with Server(act) as server:
        summary = build(photographs, tmp_path / "out", server)
    assert summary["markdown"] == 6
    assert [row["caption"] for row in rows_of(tmp_path / "out")][:3] == ["Red 0.", "Red. 1.", "Red 2."]


def test_keys(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Server() as server:
        build(photographs, tmp_path / "one", server)
        assert not [1 for headers in server.headers if "hf_secret" in str(headers)]
        build(photographs, tmp_path / "two", server, api_key="mine")
        assert server.headers[-1]["Authorization"] == "Bearer mine"
    with (
        Server(lambda number, red: (401, {"error": "no key"}, {})) as server,
        pytest.raises(ValueError, match=r"401 .*no key.*`api_key_env`"),
    ):
        build(photographs, tmp_path / "three", server)


def test_sampling_takes_a_seed_of_its_own_for_each_row(photographs, tmp_path):
    settings = CaptionSettings("vlm", SETTINGS.prompt, temperature=0.7, top_p=0.9, seed=100)
    with Server() as server:
        build(photographs, tmp_path / "out", server, settings, temperature=0.7, top_p=0.9)
    assert sorted(request["seed"] for request in server.requests) == list(range(100, 112))
    assert {(request["temperature"], request["top_p"]) for request in server.requests} == {(0.7, 0.9)}


def test_images_are_sent_upright_small_and_without_metadata(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.new("RGB", (60, 30)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (4096, 1024)).save(folder / "wide.png")
    with Server() as server:
        build(folder, tmp_path / "out", server)
    assert sorted(server.images) == [((30, 60), {}), ((2048, 512), {})]


def test_refused_images_raise_their_own_error():
    with (
        Server(lambda number, red: (413, b"", {})) as server,
        closing(ServerCaptioner(server.url, "vlm", SETTINGS.prompt)) as asked,
        pytest.raises(RefusedError),
    ):
        asked.submit(Image.new("RGB", (8, 8))).result()


def call(photographs, output, url, *more):
    options = ["--output", str(output), "--server", url, "--model", "vlm", "--prompt-file", str(output) + ".txt"]
    return ["caption", str(photographs), *options, *map(str, more)]


def test_the_command(photographs, tmp_path, capsys, monkeypatch, tiny_clip):
    (tmp_path / "out.txt").write_text(SETTINGS.prompt)
    monkeypatch.setenv("VLM_KEY", "secret")
    with Server() as server:
        assert main(call(photographs, tmp_path / "out", server.url + "/v1", "--api-key-env", "VLM_KEY")) == 0
        assert server.headers[0]["Authorization"] == "Bearer secret"
        printed = capsys.readouterr().out
        assert "first caption (000.png):\nRed 0. It is a picture.\n" in printed
        assert "12 images done now; next: fastgoal pairs" in printed
        # The server's address may be another one when the folder is continued.
        assert main(call(photographs, tmp_path / "out", "http://localhost:1")) == 0
    assert rows_of(tmp_path / "out") == expected(range(12))
    for more, words in (
        (["--workers", 2], "--workers and --ray cannot be used with --server"),
        (["--dtype", "float16"], "--device and --dtype cannot be used with --server"),
        (["--api-key-env", "ABSENT_KEY"], "--api-key-env ABSENT_KEY"),
    ):
        assert main(call(photographs, tmp_path / "out", server.url, *more)) == 2
        assert words in capsys.readouterr().err
    assert main(["caption", str(photographs), "--output", "x", "--model", str(tiny_clip), "--api-key-env", "K"]) == 2
    assert "--api-key-env is for a --server" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_continues(tmp_path, sent):
    folder = paint(tmp_path / "photographs", 40)
    (tmp_path / "out.txt").write_text(SETTINGS.prompt)
    with Server(pause=0.1) as server:
        command = [sys.executable, "-m", "fastgoal", *call(folder, tmp_path / "out", server.url, "--batch-size", 4)]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Whoever was started in the background ignores interruptions, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while len(server.requests) < 14:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=20)
        if sent == signal.SIGINT:
            assert process.returncode == 130
            assert errors.rstrip().endswith("fastgoal caption: interrupted")
            assert "Traceback" not in errors
        server.requests.clear()
        server.pause = 0
        summary = build(folder, tmp_path / "out", server)
    assert summary["made"] == len(server.requests) <= 40 - 4
    assert [row["file_name"] for row in rows_of(tmp_path / "out")] == [f"{number:03d}.png" for number in range(40)]
