"""Evaluate a model with mteb on the data of a protocol: run.py SITE_PACKAGES MODEL PROTOCOL DATA OUTPUT.json."""

import json
import site
import sys

site_packages, model, protocol, data, output = sys.argv[1:]
site.addsitedir(site_packages)  # of the environment with fastgoal

import mteb  # noqa: E402
from mteb.models.model_implementations.clip_models import CLIPModel  # noqa: E402

from fastgoal.mteb_tasks import mteb_task  # noqa: E402

clip = CLIPModel(model, revision=None)
known = mteb.get_model_meta("openai/clip-vit-base-patch16")
clip.mteb_model_meta = known.model_copy(update={"name": "me/my-model", "revision": None, "max_tokens": 248})
recalls = {}
for direction in ("text_to_image", "image_to_text"):
    scores = mteb.evaluate(clip, mteb_task(protocol, data, direction), cache=None).task_results[0].scores["test"][0]
    recalls |= {f"{direction}_R@{k}": scores[f"recall_at_{k}"] for k in (1, 5)}
with open(output, "w", encoding="utf-8") as file:
    json.dump(recalls, file)
