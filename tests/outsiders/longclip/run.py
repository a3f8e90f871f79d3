"""Embed an image and texts with the code of Long-CLIP: run.py SOURCE WEIGHTS.pt PIXELS_AND_IDS.pt OUTPUT.pt."""

import sys

source, weights, inputs, output = sys.argv[1:]
sys.path.insert(0, f"{source}/model")  # its package imports pkg_resources, which setuptools no longer has

import torch  # noqa: E402
from model_longclip import build_model  # noqa: E402

# As its `load` does, which also makes a transform of torchvision.
model = build_model(torch.load(weights, map_location="cpu"), load_from_clip=False).float()
values = torch.load(inputs)
with torch.no_grad():
    result = {
        "image_embeds": model.encode_image(values["pixel_values"]),
        "text_embeds": model.encode_text(values["input_ids"]),
    }
torch.save(result, output)
