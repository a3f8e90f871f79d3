"""Embed an image and texts with open_clip: run.py FOLDER PIXELS_AND_IDS.pt OUTPUT.pt."""

import sys

import open_clip
import torch

folder, inputs, output = sys.argv[1:]
model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
values = torch.load(inputs)
with torch.no_grad():
    result = {
        "image_embeds": model.eval().encode_image(values["pixel_values"], normalize=True),
        "text_embeds": model.encode_text(values["input_ids"], normalize=True),
        "context_length": open_clip.get_tokenizer(f"local-dir:{folder}").context_length,
        "version": open_clip.__version__,
    }
torch.save(result, output)
