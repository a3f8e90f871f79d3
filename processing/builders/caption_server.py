"""Captions from a server with OpenAI's chat completions: vLLM, SGLang, llama.cpp, Inference Providers.

One thread sends many concurrent requests with `huggingface_hub.AsyncInferenceClient`. Requests to a server that is
busy, restarts or limits rates are repeated at growing intervals. An image that the server refuses becomes a bad row.
Any other answer ends the run, which can be continued. Time and bytes of an answer are limited, and redirects are not
followed, so that images go to no other address.
"""

import asyncio
import base64
import io
import math
import random
import re
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError
from PIL import Image
from transformers.utils import logging

from fastgoal.processing.texts import shortened

from .captioner import PROMPT, Caption, RefusedError, whole_sentences

logger = logging.get_logger(__name__)

# The answers of a server that is busy or restarts, and of one that refuses an image.
BUSY = {408, 409, 425, 429, 500, 502, 503, 504}
REFUSED = {400, 413, 415, 422}
REFUSALS_AT_START = 10
# Models read images of about this size or smaller.
LONGEST_SIDE = 2048
LARGEST_ANSWER = 4 * 2**20  # bytes; a caption has some thousands
LONGEST_TOKEN = 100  # characters; nearly all tokens of any vocabulary are shorter
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
SECONDS_BETWEEN_WARNINGS = 30
# Some servers leave the model's reasoning in the answer.
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class ServerCaptioner:
    """Request captions from a server, many at once.

    Args:
        url: URL of the server, such as `http://localhost:8000`; `/v1/chat/completions` is added where it is missing.
        model: The server's name for the model.
        prompt: The text that asks for a caption, placed after the image.
        max_new_tokens: Longest caption in tokens.
        temperature: 0 for greedy decoding; above 0 for sampling.
        top_p: Sample from the most likely tokens up to this total probability.
        at_once: Number of concurrent requests.
        api_key: Sent as a bearer token. Without it the word EMPTY is sent, and never the token of a Hub account.
        timeout: Seconds for the whole answer, after which the request is repeated.
        patience: Seconds for which requests to a server that fails are repeated; a twentieth of that if the server has
            not answered any request. A server that has not answered any and accepts no connection is an error at once.

    Raises:
        ValueError: `url` is not a URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str = PROMPT,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        at_once: int = 32,
        api_key: str | None = None,
        timeout: float = 300.0,
        patience: float = 600.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"`server` must be a URL such as http://localhost:8000, got {url!r}.")
        self.url, self.model, self.prompt, self.timeout, self.patience = url, model, prompt, timeout, patience
        self.sampling = temperature > 0
        self.request: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        if self.sampling:
            self.request["top_p"] = top_p
        # Without a key the client would send the token of the Hub account.
        self._client = _Client(base_url=url, api_key=api_key or "EMPTY", timeout=timeout)
        self._free = asyncio.Semaphore(at_once)
        self._answered = self._refused = 0
        self._reached = False  # whether the server has answered anything
        self._pause_until = self._warned = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="captions", daemon=True).start()

    def submit(self, image: Image.Image, seed: int = 0) -> "Future[Caption]":
        """Start a request about an RGB image, and return its future at once. The seed is for sampling.

        The future's `result` raises `RefusedError` if the server refuses the image, `ValueError` if it does not answer
        with captions, and `OSError` if it cannot be reached or keeps failing.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(_data_url(image), seed), self._loop)

    def close(self) -> None:
        """Cancel all requests."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.close()
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)

    async def _ask(self, image_url: str, seed: int) -> Caption:
        question = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": self.prompt},
        ]
        request = {**self.request, "seed": seed} if self.sampling else self.request
        async with self._free:
            since, pause = time.monotonic(), FIRST_PAUSE
            while True:
                await asyncio.sleep(max(0.0, self._pause_until - time.monotonic()))
                try:
                    messages = [{"role": "user", "content": question}]
                    call = self._client.chat_completion(messages, model=self.model, **request)
                    # The client's own timeout is for each read, and a slow answer has many.
                    answer = await asyncio.wait_for(call, self.timeout)
                    break
                except HfHubHTTPError as error:
                    self._reached = True
                    if error.response.status_code not in BUSY:
                        raise self._refusal(error) from None
                    reason, wait = _said(error), _retry_after(error.response.headers.get("Retry-After"))
                except (TimeoutError, InferenceTimeoutError):
                    reason, wait = f"no complete answer after {self.timeout:g} s.", 0.0
                except (HTTPError, OSError) as error:  # the connection failed
                    # By name: the class is in httpx or httpx2, depending on the version of huggingface_hub.
                    if type(error).__name__ == "ConnectError" and not self._reached:
                        raise ConnectionError(
                            f"`server` must be the URL of a running server, got {self.url}, which accepts no "
                            f"connection ({error}). Start the server, or check host and port."
                        ) from None
                    reason, wait = f"{type(error).__name__}: {error}.", 0.0
                except _BadAnswerError as error:
                    raise ValueError(f"`server={self.url}` {error}") from None
                except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
                    raise self._unexpected(repr(error)) from None
                self._count_failure(reason, since)
                # All requests wait as long as the server asked one of them to.
                self._pause_until = max(self._pause_until, time.monotonic() + min(wait, self.patience))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
        try:
            choice = answer.choices[0]
            text, finish = choice.message.content or "", choice.finish_reason
            characters = len(text)
            text = _THOUGHTS.sub("", text).strip()
        except (TypeError, AttributeError, IndexError) as error:
            raise self._unexpected(repr(error)) from None
        self._reached = True
        self._answered += 1
        if characters > LONGEST_TOKEN * self.request["max_tokens"]:
            raise RefusedError(
                f"the server wrote {characters:,} characters about this image, more than "
                f"`max_new_tokens={self.request['max_tokens']}` allows."
            )
        return Caption(whole_sentences(text), "length") if finish == "length" else Caption(text, "stop")

    def _refusal(self, error: HfHubHTTPError) -> ValueError:
        """Return the error for an answer that would not change if the request were repeated."""
        status, said = error.response.status_code, _said(error)
        if status in REFUSED:
            self._refused += 1
            if self._answered or self._refused < REFUSALS_AT_START:
                return RefusedError(f"the server refuses this image: {said}")
            return ValueError(f"`server={self.url}` refuses all of the first {self._refused} images: {said}")
        if status in (401, 403):
            return ValueError(
                f"`server={self.url}` does not accept the key, or needs one: {said} Name the environment variable that "
                "holds it with `api_key_env`."
            )
        return ValueError(
            f"`server={self.url}` does not know the address or the model '{self.model}': {said} Check `server` and "
            "`model`."
        )

    def _unexpected(self, reason: str) -> ValueError:
        return ValueError(
            f"`server={self.url}` does not answer like OpenAI's chat completions: {shortened(reason, 300)}. Check the "
            "address."
        )

    def _count_failure(self, reason: str, since: float) -> None:
        """Log a warning now and then, and raise `OSError` when patience has run out."""
        now = time.monotonic()
        # The address of a server that was never reached is probably wrong.
        patience = self.patience if self._reached else self.patience / 20
        if now - since > patience:
            raise ConnectionError(
                f"`server={self.url}` has not answered for {now - since:.0f} s: {reason} Finished captions are kept: "
                "the same call continues."
            )
        if now - self._warned > SECONDS_BETWEEN_WARNINGS:
            self._warned = now
            logger.warning(f"Repeating requests to {self.url}: {reason}")


class _BadAnswerError(ValueError):
    """An answer that is not read. The message continues a sentence about the server."""


class _Client(AsyncInferenceClient):
    """A client with limits that HF_HUB_OFFLINE does not block, since the server is not the Hub."""

    async def _get_async_client(self) -> Any:
        session = await super()._get_async_client()
        session.event_hooks = {"response": [_limit]}
        # A small compressed answer can have any size.
        session.headers["Accept-Encoding"] = "identity"
        return session


async def _limit(response: Any) -> None:
    """Refuse an answer that redirects or is compressed, and limit the bytes that will be read of any other."""
    if response.has_redirect_location:
        target = shortened(response.headers["Location"], 300)
        raise _BadAnswerError(
            f"redirects to {target}, and no image is sent there. If you trust it, use it as `server`."
        )
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise _BadAnswerError(f"compresses its answer ({shortened(encoding, 50)}), which was not requested.")
    response.encoding = "utf-8"  # the server may name a codec that is slow or is not one of texts
    read_all = response.aiter_raw

    async def read(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in read_all(chunk_size):
            size += len(chunk)
            if size > LARGEST_ANSWER:
                raise _BadAnswerError(f"sends an answer of more than {LARGEST_ANSWER // 2**20} MB. Check the address.")
            yield chunk

    response.aiter_raw = read


def _data_url(image: Image.Image) -> str:
    """Return the image as a data URL, with its pixels only and none of its metadata."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=b"")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _said(error: HfHubHTTPError) -> str:
    """Return status and beginning of an answer in one line."""
    text = error.response.text if error.response.is_stream_consumed else ""
    return f"{error.response.status_code} {' '.join(text.split())[:300]}".strip()


def _retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks to wait, as a number or a date; 0 without one."""
    try:
        seconds = float(value or 0)
        return seconds if 0 < seconds < math.inf else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
