"""A server on localhost that answers each request with raw bytes, and the answers of servers that misbehave."""

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

Answer = Callable[[Callable[[bytes], Any]], Any]  # gets the function that sends bytes


class RawServer(ThreadingTCPServer):
    """Reads HTTP requests and lets `answer` send what it likes; `requests` holds the bodies that arrived."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[bytes] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that give up."""

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self.server.requests.append(self.rfile.read(length))
        with contextlib.suppress(OSError):
            self.server.answer(self.send)
            self.connection.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.server.sent += len(data)


def completion(text: Any = "A red square.", finish: Any = "stop") -> bytes:
    """Return the JSON of a chat completion."""
    return json.dumps({"choices": [{"index": 0, "finish_reason": finish, "message": {"content": text}}]}).encode()


def whole(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> Answer:
    """Return the answer with this body, and with its length unless another is given."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return lambda send: send("\r\n".join(lines).encode("latin-1") + body)


def endless(start: bytes, piece: Callable[[int], bytes], pause: float = 0.0, most: int = 2**31) -> Answer:
    """Return an answer that goes on for `most` bytes, or until the client has gone."""

    def answer(send: Callable[[bytes], Any]) -> None:
        send(start)
        sent = 0
        while sent < most:
            data = piece(sent)
            send(data)
            sent += len(data)
            time.sleep(pause)

    return answer


def redirect(location: str, status: str = "307 Temporary Redirect") -> Answer:
    """Return a redirect to a location."""
    return whole(b"", f"Location: {location}", status=status)


def bomb(size: int) -> Answer:
    """Return a completion with `size` spaces in front, compressed."""
    return whole(gzip.compress(b" " * size + completion()), "Content-Encoding: gzip")


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b" " * 2**20
NEVER_DONE: dict[str, Answer] = {
    "drips the body": endless(OK + b"Content-Length: 1000000\r\n\r\n", lambda _: b" ", 0.05),
    "drips chunks": endless(CHUNKED, lambda _: b"1\r\n \r\n", 0.05),
    "drips headers": endless(OK, lambda sent: b"X: y\r\n", 0.05),
    "drips the status": endless(b"", lambda sent: b"HTTP/1.1 200 OK"[sent % 15 :][:1], 0.05, 14),
    "endless interim answers": endless(b"", lambda _: b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.05),
    "says nothing": lambda send: time.sleep(60),
}
TOO_LARGE: dict[str, Answer] = {
    "an endless body": endless(OK + b"\r\n", lambda _: MEGABYTE),
    "endless chunks": endless(CHUNKED, lambda _: b"100000\r\n" + MEGABYTE + b"\r\n"),
    "an endless error": endless(b"HTTP/1.1 400 Bad Request\r\n\r\n", lambda _: MEGABYTE),
    "a caption of 20 MB": whole(completion("x" * 20_000_000)),
}
BROKEN: dict[str, Answer] = {
    "huge headers": endless(OK, lambda _: b"X-Header: " + b"y" * 60_000 + b"\r\n", most=2**24),
    "one huge header": endless(OK + b"X-Header: ", lambda _: MEGABYTE, most=2**24),
    "a longer content length": whole(completion(), length=10_000),
    "two content lengths": whole(completion(), "Content-Length: 3"),
    "a negative content length": whole(completion(), length=-1),
    "closes the connection": lambda send: None,
    "closes within the body": whole(completion()[:20], length=len(completion())),
    "not HTTP": lambda send: send(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a chunk of a wrong length": lambda send: send(CHUNKED + b"zz\r\n" + completion() + b"\r\n0\r\n\r\n"),
}
WRONG: dict[str, Answer] = {
    "200,000 brackets": whole(b"[" * 200_000),
    "200,000 objects": whole(b'{"a":' * 200_000),
    "brackets in a completion": whole(b'{"choices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a shorter content length": whole(completion(), length=20),
    "a number of 10,000 digits": whole(b'{"created": ' + b"9" * 10_000 + completion()[1:]),
    "an object for a caption": whole(completion({"text": "A red square."})),
    "a number for a caption": whole(completion(5)),
    "a gzip bomb": bomb(2**28),
    "compressed twice": whole(gzip.compress(gzip.compress(completion())), "Content-Encoding: gzip, gzip"),
    "an unknown encoding": whole(completion(), "Content-Encoding: rot13"),
}
