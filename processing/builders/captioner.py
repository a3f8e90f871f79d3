"""Write long captions with an image-text-to-text model of transformers, such as LLaVA, Qwen-VL or SmolVLM.

The prompt goes through the model's chat template where it has one, and otherwise follows its image token. A caption
that reaches the token limit is cut back to its last whole sentence.
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
from fastgoal.processing.checkpoints.fingerprints import check_image_processor, refuse_not_finite
from fastgoal.processing.sentences import split_sentences

# Asks for captions like those of GLIT100k (FAST-GOAL, section on the dataset): all that is visible and nothing else.
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
    """The text that a model wrote about one image; it may be empty.

    `finish` is `stop` where the model ended the text, and `length` where it reached the token limit: the text then ends
    with its last whole sentence, or within its only one.
    """

    text: str
    finish: str


class Captioner:
    """An image-text-to-text model with its processor and a prompt.

    Args:
        model: Any model that `AutoModelForImageTextToText` loads.
        processor: The processor of the same checkpoint. Its tokenizer is set to pad on the left.
        prompt: The text that asks for a caption.
        max_new_tokens: Longest caption in tokens.
        temperature: 0 for greedy decoding; above 0 for sampling.
        top_p: Sample from the most likely tokens up to this total probability.
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
        # New tokens follow on the right, so the prompts of a batch must end at the same position.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.generation = self._generation_config(temperature, top_p)

    @classmethod
    def load(cls, name: str, device: str = "cpu", dtype: str = "float32", **settings: Any) -> "Captioner":
        """Load a checkpoint from a folder or the Hub. Code that comes with it is not run.

        `dtype` is a name in `torch`; the other settings are the constructor's.

        Raises:
            ValueError: The checkpoint is not an image-text-to-text model, does not exist, cannot be reached, is
                damaged, or has weights that are missing, NaN or infinite, or an image processor that does not work.
        """
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        label = f"`model={name}`"
        with loading(label, name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"{label} is a model of type '{config.model_type}', which does not write about images. Choose an "
                "image-text-to-text checkpoint, for example HuggingFaceTB/SmolVLM2-2.2B-Instruct or "
                "llava-hf/llava-v1.6-mistral-7b-hf."
            )
        with loading(label, name):
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
            options = {"config": config, "dtype": getattr(torch, dtype), "trust_remote_code": False}
            model = load_whole(AutoModelForImageTextToText, name, **options)
        check_image_processor(processor.image_processor, label)
        refuse_not_finite(model.named_parameters(), label)
        return cls(model.to(device), processor, **settings)

    def __call__(self, images: Sequence[Image.Image], seed: int = 0) -> list[Caption]:
        """Return the captions of RGB images of any sizes, generated in one batch.

        When sampling, the same seed and images give the same captions.

        Raises:
            ValueError: The batch does not fit into the memory of the device.
        """
        try:
            return self._captions(images, seed)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"A batch of {len(images)} images does not fit into the memory of {self.model.device}: "
                f"{str(error).splitlines()[0]} Continue with a smaller `batch_size` or `max_new_tokens`, or with "
                "`dtype=bfloat16`."
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
        # Processors like BLIP-2's add the image tokens.
        if token is not None and str(token) not in text and not hasattr(self.processor, "num_query_tokens"):
            text = f"{token}\n{text}"
        return self.processor(images=list(images), text=[text] * len(images), padding=True, return_tensors="pt")

    def _caption(self, tokens: list[int]) -> Caption:
        end = self.generation.eos_token_id
        ends = end if isinstance(end, list) else [end]
        length = next((index for index, token in enumerate(tokens) if token in ends), None)
        finish = "length" if length is None else "stop"
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        return Caption(whole_sentences(text) if finish == "length" else text, finish)

    def _generation_config(self, temperature: float, top_p: float) -> GenerationConfig:
        """Return the checkpoint's own settings, such as a repetition penalty, with our limits and sampling."""
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
    """The model refuses this image."""


def whole_sentences(text: str) -> str:
    """Return the text up to the end of its last whole sentence; all of it if there is none."""
    sentences = split_sentences(text)
    if not sentences or _CLOSED.search(sentences[-1].text) or len(sentences) == 1:
        return text
    return text[: sentences[-2].end]
