"""Captions from a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Inference Providers.

One thread keeps many requests going with `huggingface_hub.AsyncInferenceClient`. A server that is busy, restarts or
limits rates is asked again, later and later; one that refuses an image makes it a bad row; any other answer ends the
run, which can be continued.
"""

import asyncio
import base64
import io
import math
import random
import re
import threading
import time
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError
from PIL import Image
from transformers.utils import logging

from .captioner import PROMPT, Caption, RefusedError, whole_sentences

logger = logging.get_logger(__name__)

# What a server that is busy or about to restart answers, and what it says about one image that it cannot take.
BUSY = {408, 409, 425, 429, 500, 502, 503, 504}
REFUSED = {400, 413, 415, 422}
REFUSALS_AT_START = 10
# Models read images at about this size or smaller.
LONGEST_SIDE = 2048
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
SECONDS_BETWEEN_WARNINGS = 30
# Some servers leave a model's thoughts in its answer.
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


class ServerCaptioner:
    """Asks a server for captions, many at once.

    Args:
        url: Of the server, such as `http://localhost:8000`; `/v1/chat/completions` is added where it is not there.
        model: Its name for the model.
        prompt: Text that asks for the caption, put after the image.
        max_new_tokens: Longest caption in tokens.
        temperature: 0 always takes the likeliest token; above 0 samples.
        top_p: When sampling, from the likeliest tokens that have this share of the probability.
        at_once: Requests on their way at the same time.
        api_key: Sent as a bearer token. Without one the word EMPTY is, and never the token of a Hub account.
        timeout: Seconds after which an answer is given up and asked for again.
        patience: Seconds for which a server that fails is asked again; a twentieth of it where none is reached at all.

    Raises:
        ValueError: The URL is none.
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
            raise ValueError(f"server='{url}'; expected a URL such as http://localhost:8000.")
        self.url, self.model, self.prompt, self.patience = url, model, prompt, patience
        self.sampling = temperature > 0
        self.request: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        if self.sampling:
            self.request["top_p"] = top_p
        # Without a key the client would take the Hub's, and send it to whoever this is.
        self._client = _Client(base_url=url, api_key=api_key or "EMPTY", timeout=timeout)
        self._free = asyncio.Semaphore(at_once)
        self._answered = self._refused = 0
        self._reached = False  # whether anything has answered, be it that it is busy
        self._pause_until = self._warned = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="captions", daemon=True).start()

    def submit(self, image: Image.Image, seed: int = 0) -> "Future[Caption]":
        """Begin to ask about an RGB image. Returns at once; the seed counts when sampling.

        The future's `result` raises `RefusedError` if the server does not take this image, `ValueError` if it answers
        something else than captions, and `OSError` if it is not there or goes on failing.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(_data_url(image), seed), self._loop)

    def close(self) -> None:
        """Give up what is on its way."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._client.close()
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)

    async def _ask(self, picture: str, seed: int) -> Caption:
        question = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self.prompt},
        ]
        request = {**self.request, "seed": seed} if self.sampling else self.request
        async with self._free:
            since, pause = time.monotonic(), FIRST_PAUSE
            while True:
                await asyncio.sleep(max(0.0, self._pause_until - time.monotonic()))
                try:
                    answer = await self._client.chat_completion(
                        [{"role": "user", "content": question}], model=self.model, **request
                    )
                    break
                except HfHubHTTPError as error:
                    self._reached = True
                    if error.response.status_code not in BUSY:
                        raise self._refusal(error) from None
                    reason, wait = _said(error), _retry_after(error.response.headers.get("Retry-After"))
                except InferenceTimeoutError:
                    reason, wait = "no answer in time.", 0.0
                except (HTTPError, OSError) as error:  # the connection failed
                    reason, wait = f"{type(error).__name__}: {error}.", 0.0
                except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                    raise self._nonsense(repr(error)) from None
                self._count_failure(reason, since)
                # Said to one, meant for all; and whatever it says, not all at once.
                self._pause_until = max(self._pause_until, time.monotonic() + min(wait, self.patience))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
        try:
            choice = answer.choices[0]
            text, finish = choice.message.content or "", choice.finish_reason
            text = _THOUGHTS.sub("", text).strip()
        except (TypeError, AttributeError, IndexError) as error:
            raise self._nonsense(repr(error)) from None
        self._reached = True
        self._answered += 1
        return Caption(whole_sentences(text), "length") if finish == "length" else Caption(text, "stop")

    def _refusal(self, error: HfHubHTTPError) -> ValueError:
        """What an answer means that asking again would not change."""
        status, said = error.response.status_code, _said(error)
        if status in REFUSED:
            self._refused += 1
            if self._answered or self._refused < REFUSALS_AT_START:
                return RefusedError(f"the server does not take this image: {said}")
            return ValueError(f"server='{self.url}' takes none of the first {self._refused} images: {said}")
        if status in (401, 403):
            return ValueError(
                f"server='{self.url}' wants a key, or another one: {said} Name the environment variable that holds it "
                "with --api-key-env."
            )
        return ValueError(
            f"server='{self.url}' has no such model or address ('{self.model}'): {said} Check --server and --model."
        )

    def _nonsense(self, what: str) -> ValueError:
        return ValueError(
            f"server='{self.url}' does not answer as OpenAI's chat completions do: {what}. Check the address."
        )

    def _count_failure(self, reason: str, since: float) -> None:
        """Warn now and then; raise `OSError` when there is no patience left."""
        now = time.monotonic()
        # Who was never reached is more likely misspelt than busy.
        patience = self.patience if self._reached else self.patience / 20
        if now - since > patience:
            raise ConnectionError(
                f"server='{self.url}' has not answered for {now - since:.0f} s: {reason} What is finished is kept; the "
                "same command continues."
            )
        if now - self._warned > SECONDS_BETWEEN_WARNINGS:
            self._warned = now
            logger.warning(f"The server {self.url} is asked again: {reason}")


class _Client(AsyncInferenceClient):
    """A client for a server that was named: HF_HUB_OFFLINE keeps from the Hub, and not from this one."""

    async def _get_async_client(self) -> Any:
        session = await super()._get_async_client()
        session.event_hooks = {**session.event_hooks, "request": []}
        return session


def _data_url(image: Image.Image) -> str:
    """The picture in a URL; only pixels, nothing else that its file says."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=b"")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _said(error: HfHubHTTPError) -> str:
    """Status and beginning of an answer, in one line."""
    text = error.response.text if error.response.is_stream_consumed else ""
    return f"{error.response.status_code} {' '.join(text.split())[:300]}".strip()


def _retry_after(value: str | None) -> float:
    """Seconds that the header asks to wait, given as a number or a date; 0 where it does not say."""
    try:
        seconds = float(value or 0)
        return seconds if 0 < seconds < math.inf else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
