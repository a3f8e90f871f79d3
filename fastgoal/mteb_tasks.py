"""Tasks of mteb (github.com/embeddings-benchmark/mteb) for retrieval with long captions, which mteb does not have.

mteb is imported when a task is made.
"""

import os
from typing import Any

from fastgoal.trainer.evaluation.measures.retrieval import DIRECTIONS
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol


def mteb_task(protocol: str, data: str | os.PathLike[str], direction: str = "text_to_image", **options: Any) -> Any:
    """Return a retrieval task of mteb over the data of a protocol, such as DOCCI, DCI or Urban1k.

        task = mteb_task("docci", "docci/")
        result = mteb.evaluate(model, task, cache=None)

    Its `recall_at_1` is the R@1 of `fastgoal evaluate --protocol`, except that mteb does not count ties against the
    model.

    Args:
        protocol: Name of the protocol, see `fastgoal evaluate --help`.
        data: Folder of the dataset in its published form, or anything else that the protocol reads.
        direction: `text_to_image` or `image_to_text`.
        **options: Further arguments of `open_protocol`, such as `limit`.

    Raises:
        ImportError: mteb is not installed.
        ValueError: An argument is wrong, or the data cannot be read.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}, got {direction!r}.")
    source = open_protocol(protocol, data, **options)
    try:
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata
    except ImportError as error:
        raise ImportError("Tasks of mteb need the package mteb. Install it with: pip install mteb") from error
    to_image = direction == "text_to_image"
    short = "".join(part.capitalize() for part in protocol.replace("-", " ").split())

    class LongCaptionRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"{short}{'T2I' if to_image else 'I2T'}Retrieval",
            description=f"{PROTOCOLS[protocol].title}: find the {'image' if to_image else 'caption'} by its "
            f"{'caption' if to_image else 'image'}.",
            type="Any2AnyRetrieval",
            category="t2i" if to_image else "i2t",
            modalities=["text", "image"],
            dataset={"path": os.path.basename(os.path.abspath(data)), "revision": "1"},
            eval_langs=["eng-Latn"],
            main_score="recall_at_1",
        )

        def load_data(self, **kwargs: Any) -> None:
            import datasets

            images: list[Any] = []
            captions: list[str] = []
            relevant: dict[str, dict[str, int]] = {}
            for number, row in enumerate(source):
                images.append(row.image)
                for caption in row.captions:
                    query, answer = (f"t{len(captions)}", f"i{number}")[:: 1 if to_image else -1]
                    relevant.setdefault(query, {})[answer] = 1
                    captions.append(caption)
            image_ids, text_ids = [f"i{n}" for n in range(len(images))], [f"t{n}" for n in range(len(captions))]
            gallery = datasets.Dataset.from_dict({"id": image_ids, "image": images})
            gallery = gallery.cast_column("image", datasets.Image())
            texts = datasets.Dataset.from_dict({"id": text_ids, "text": captions})
            corpus, queries = (gallery, texts) if to_image else (texts, gallery)
            split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return LongCaptionRetrieval()
