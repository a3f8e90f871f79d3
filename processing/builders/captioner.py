"""Writes long captions with any image-text-to-text checkpoint of transformers: LLaVA, Qwen-VL, SmolVLM and the like.

The model is asked with its own chat template where it has one, else with the plain prompt after its image token. A
caption that stops at the token limit is cut back to its last whole sentence.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.sentences import split_sentences

# Asks for what GLIT100k's captions hold (FAST-GOAL, section on the dataset): what can be seen, and nothing else.
PROMPT = (
    "Describe this picture in detail for a reader who cannot see it. Begin with the scene as a whole. Then go through "
    "what it shows: the objects, with their colors, materials and shapes, how many there are, and where each one is "
    "in the picture and beside the others; the people and animals, what they look like, what they wear and what they "
    "do; the background, the light, and any text that can be read. Mention only what is visible. Do not guess at "
    "names, feelings, reasons or anything outside the picture, and do not comment on it. Write about 150 words of "
    "plain sentences in one or more paragraphs, without headings and lists."
)
_CLOSED = re.compile("[.!?…。！？][\"'”’»)\\]*]*$")


@dataclass(frozen=True)
class Caption:
    """What a model wrote about one image; empty if that was nothing.

    `finish` is `stop` when the model came to its end, `length` when it was stopped by the token limit: the text then
    ends with its last whole sentence, or in the middle of its only one.
    """

    text: str
    finish: str


class Captioner:
    """An image-text-to-text model with its processor and a prompt.

    Args:
        model: Any model that `AutoModelForImageTextToText` loads.
        processor: The processor of the same checkpoint; its tokenizer is set to pad on the left.
        prompt: What to ask of every image.
        max_new_tokens: Longest caption in tokens.
        temperature: 0 always takes the likeliest token; above 0 samples.
        top_p: When sampling, from the likeliest tokens that have this share of the probability.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompt: str = PROMPT,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        tokenizer = processor.tokenizer
        # New tokens are written on the right: there the prompts of a batch have to end together.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.generation = self._generation_config(temperature, top_p)

    @classmethod
    def load(cls, name: str, device: str = "cpu", dtype: str = "float32", **settings: Any) -> "Captioner":
        """Load a checkpoint, a folder or Hub id; code that comes with it is not run.

        `dtype` is a name as in `torch`; the other settings are the constructor's.

        Raises:
            ValueError: It is no image-text-to-text checkpoint, does not exist, cannot be reached, is damaged, lacks
                weights, or has some that are no numbers.
        """
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        with loading(f"--model {name}", name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"model='{name}' is of the type '{config.model_type}', which does not write about images. Name an "
                "image-text-to-text checkpoint, for example HuggingFaceTB/SmolVLM2-2.2B-Instruct or "
                "llava-hf/llava-v1.6-mistral-7b-hf."
            )
        with loading(f"--model {name}", name):
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
            kind = getattr(torch, dtype)
            model = load_whole(AutoModelForImageTextToText, name, config=config, dtype=kind, trust_remote_code=False)
        refuse_not_finite(model.named_parameters(), f"--model {name}")
        return cls(model.to(device), processor, **settings)

    def __call__(self, images: Sequence[Image.Image], seed: int = 0) -> list[Caption]:
        """Captions of RGB images of any sizes, written in one batch.

        When sampling, the same seed and images give the same captions.

        Raises:
            ValueError: The images do not fit into the device's memory at once.
        """
        try:
            return self._captions(images, seed)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{len(images)} images in a batch are too many for the memory of {self.model.device}: "
                f"{str(error).splitlines()[0]} Continue with a smaller --batch-size, a smaller --max-new-tokens or "
                "--dtype bfloat16."
            ) from None

    @torch.inference_mode()
    def _captions(self, images: Sequence[Image.Image], seed: int) -> list[Caption]:
        inputs = self._inputs(images).to(self.model.device, dtype=self.model.dtype)
        if self.generation.do_sample:
            torch.manual_seed(seed)
        output = self.model.generate(**inputs, generation_config=self.generation)
        prompts = inputs["input_ids"]
        # A decoder repeats its prompt before its own tokens; an encoder-decoder does not.
        if output.shape[1] >= prompts.shape[1] and torch.equal(output[:, : prompts.shape[1]], prompts):
            output = output[:, prompts.shape[1] :]
        return [self._caption(tokens) for tokens in output.tolist()]

    def _inputs(self, images: Sequence[Image.Image]) -> Any:
        if getattr(self.processor, "chat_template", None):
            question = {"type": "text", "text": self.prompt}
            conversations = [
                [{"role": "user", "content": [{"type": "image", "image": image}, question]}] for image in images
            ]
            return self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        text = self.prompt
        token = getattr(self.processor, "image_token", None)
        # BLIP-2's relatives put their image tokens in themselves.
        if token is not None and str(token) not in text and not hasattr(self.processor, "num_query_tokens"):
            text = f"{token}\n{text}"
        return self.processor(images=list(images), text=[text] * len(images), padding=True, return_tensors="pt")

    def _caption(self, tokens: list[int]) -> Caption:
        end = self.generation.eos_token_id
        ends = end if isinstance(end, list) else [end]
        length = next((place for place, token in enumerate(tokens) if token in ends), None)
        finish = "length" if length is None else "stop"
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        return Caption(whole_sentences(text) if finish == "length" else text, finish)

    def _generation_config(self, temperature: float, top_p: float) -> GenerationConfig:
        """The checkpoint's own settings, a penalty of repetitions among them, with the way of choosing tokens ours."""
        config = copy.deepcopy(self.model.generation_config)
        tokenizer = self.processor.tokenizer
        sampling = temperature > 0
        config.update(
            max_new_tokens=self.max_new_tokens,
            max_length=None,
            num_beams=1,
            do_sample=sampling,
            temperature=temperature if sampling else None,
            top_p=top_p if sampling else None,
            top_k=0 if sampling else None,
            min_p=None,
            typical_p=None,
        )
        if config.eos_token_id is None:
            config.eos_token_id = tokenizer.eos_token_id
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        return config


class RefusedError(ValueError):
    """A model does not take this one image."""


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; all of it if there is none."""
    sentences = split_sentences(text)
    if not sentences or _CLOSED.search(sentences[-1].text) or len(sentences) == 1:
        return text
    return text[: sentences[-2].end]
