"""Classify a folder with clip-benchmark: run.py SITE_PACKAGES MODEL DATA TEMPLATES.json OUTPUT.json."""

import json
import site
import sys

site_packages, name, data, templates, output = sys.argv[1:]
site.addsitedir(site_packages)  # of the environment with transformers

import torch  # noqa: E402
from clip_benchmark.metrics import zeroshot_classification  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from transformers import AutoProcessor, CLIPModel  # noqa: E402

model, processor = CLIPModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
model.encode_image = lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output
model.encode_text = lambda ids: model.get_text_features(input_ids=ids).pooler_output
folder = ImageFolder(data, lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0])
with open(templates, encoding="utf-8") as file:
    prompts = [template.replace("{}", "{c}") for template in json.load(file)]
metrics = zeroshot_classification.evaluate(
    model,
    torch.utils.data.DataLoader(folder, batch_size=8),
    lambda texts: processor(text=texts, padding=True, return_tensors="pt")["input_ids"],
    [label.replace("_", " ") for label in folder.classes],
    prompts,
    "cpu",
    amp=False,
)
with open(output, "w", encoding="utf-8") as file:
    json.dump(metrics, file)
