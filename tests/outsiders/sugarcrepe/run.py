"""Evaluate a CLIP with SugarCrepe's own code, in an environment with open_clip: run.py SOURCE MODEL DATA OUTPUT.json.

SOURCE is a clone of RAIVNLab/sugar-crepe, DATA a folder with files of subsets and the images in val2017/.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPProcessor

source, checkpoint, data, output = sys.argv[1:]
sys.path.insert(0, source)
from main_eval import evaluate  # noqa: E402

model, processor = CLIPModel.from_pretrained(checkpoint).eval(), CLIPProcessor.from_pretrained(checkpoint)


class AsOpenClip:
    """The two methods of open_clip's models that SugarCrepe's code calls."""

    def encode_image(self, pixels, normalize=False):
        embeds = model.get_image_features(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(self, ids, normalize=False):
        embeds = model.get_text_features(input_ids=ids).pooler_output
        return torch.nn.functional.normalize(embeds, dim=-1) if normalize else embeds


def tokenize(text):
    return processor.tokenizer(text, padding="max_length", return_tensors="pt")["input_ids"]


def transform(image):
    return processor.image_processor(image, return_tensors="pt")["pixel_values"][0]


subsets = {file.stem: json.loads(file.read_text()) for file in Path(data).glob("*.json")}
accuracies = evaluate(f"{data}/val2017", subsets, AsOpenClip(), tokenize, transform, "cpu")
Path(output).write_text(json.dumps(accuracies))
