"""Fine-tune CLIP for long, detailed captions: FAST-GOAL, GOAL and SPARC on transformers.

The public names below are imported when they are first used, so that `import fastgoal` and `fastgoal --help` do not
pay for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgoal.export.average import average
    from fastgoal.hub_cards.push import push
    from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel, FastGoalOutput
    from fastgoal.modeling_fastgoal.configuration_fastgoal import (
        FastGoalCLIPConfig,
        FastGoalMetaClip2Config,
        FastGoalSiglipConfig,
    )
    from fastgoal.modeling_fastgoal.losses_fastgoal import LossWeights
    from fastgoal.modeling_fastgoal.modeling_fastgoal import (
        FastGoalCLIPModel,
        FastGoalMetaClip2Model,
        FastGoalSiglipModel,
    )
    from fastgoal.pages.average import AverageCurve, average_curve
    from fastgoal.pages.explain import explain
    from fastgoal.processing.builders.captions import build_captions
    from fastgoal.processing.builders.embeddings import build_embeddings
    from fastgoal.processing.builders.pairs import build_pairs
    from fastgoal.processing.data.forms.registry import load_source
    from fastgoal.processing.flism import Flism
    from fastgoal.processing.matching import LocalPair
    from fastgoal.processing.processing_fastgoal import FastGoalProcessor
    from fastgoal.processing.regions import Region
    from fastgoal.processing.sentences import Sentence, split_sentences
    from fastgoal.search.index import ImageIndex
    from fastgoal.trainer.batches.collator import FastGoalCollator
    from fastgoal.trainer.card import CardOptions
    from fastgoal.trainer.evaluation.evaluate import evaluate
    from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics
    from fastgoal.trainer.evaluation.options import EvaluationOptions
    from fastgoal.trainer.evaluation.report import EvaluationReport
    from fastgoal.trainer.trainer import FastGoalTrainer
    from fastgoal.trainer.training_arguments import FastGoalTrainingArguments

    __version__: str

__all__ = [
    "AverageCurve",
    "CardOptions",
    "EvaluationOptions",
    "EvaluationReport",
    "FastGoalCLIPConfig",
    "FastGoalCLIPModel",
    "FastGoalCollator",
    "FastGoalMetaClip2Config",
    "FastGoalMetaClip2Model",
    "FastGoalModel",
    "FastGoalOutput",
    "FastGoalProcessor",
    "FastGoalSiglipConfig",
    "FastGoalSiglipModel",
    "FastGoalTrainer",
    "FastGoalTrainingArguments",
    "Flism",
    "ImageIndex",
    "LocalPair",
    "LossWeights",
    "Region",
    "Sentence",
    "__version__",
    "average",
    "average_curve",
    "build_captions",
    "build_embeddings",
    "build_pairs",
    "evaluate",
    "explain",
    "load_source",
    "push",
    "retrieval_metrics",
    "split_sentences",
]

_MODULES = {
    "AverageCurve": "fastgoal.pages.average",
    "CardOptions": "fastgoal.trainer.card",
    "EvaluationOptions": "fastgoal.trainer.evaluation.options",
    "EvaluationReport": "fastgoal.trainer.evaluation.report",
    "FastGoalCLIPConfig": "fastgoal.modeling_fastgoal.configuration_fastgoal",
    "FastGoalCLIPModel": "fastgoal.modeling_fastgoal.modeling_fastgoal",
    "FastGoalCollator": "fastgoal.trainer.batches.collator",
    "FastGoalMetaClip2Config": "fastgoal.modeling_fastgoal.configuration_fastgoal",
    "FastGoalMetaClip2Model": "fastgoal.modeling_fastgoal.modeling_fastgoal",
    "FastGoalModel": "fastgoal.modeling_fastgoal.base_fastgoal",
    "FastGoalOutput": "fastgoal.modeling_fastgoal.base_fastgoal",
    "FastGoalProcessor": "fastgoal.processing.processing_fastgoal",
    "FastGoalSiglipConfig": "fastgoal.modeling_fastgoal.configuration_fastgoal",
    "FastGoalSiglipModel": "fastgoal.modeling_fastgoal.modeling_fastgoal",
    "FastGoalTrainer": "fastgoal.trainer.trainer",
    "FastGoalTrainingArguments": "fastgoal.trainer.training_arguments",
    "Flism": "fastgoal.processing.flism",
    "ImageIndex": "fastgoal.search.index",
    "LocalPair": "fastgoal.processing.matching",
    "LossWeights": "fastgoal.modeling_fastgoal.losses_fastgoal",
    "Region": "fastgoal.processing.regions",
    "Sentence": "fastgoal.processing.sentences",
    "average": "fastgoal.export.average",
    "average_curve": "fastgoal.pages.average",
    "build_captions": "fastgoal.processing.builders.captions",
    "build_embeddings": "fastgoal.processing.builders.embeddings",
    "build_pairs": "fastgoal.processing.builders.pairs",
    "evaluate": "fastgoal.trainer.evaluation.evaluate",
    "explain": "fastgoal.pages.explain",
    "load_source": "fastgoal.processing.data.forms.registry",
    "push": "fastgoal.hub_cards.push",
    "retrieval_metrics": "fastgoal.trainer.evaluation.measures.retrieval",
    "split_sentences": "fastgoal.processing.sentences",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("fastgoal")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
