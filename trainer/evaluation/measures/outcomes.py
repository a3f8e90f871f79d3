"""The outcomes of an accuracy test, one for each item. Imports nothing heavy, as the protocols need it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outcomes:
    """Which items of an accuracy test a model answers correctly. The accuracy is the mean over the items.

    Attributes:
        correct: `(items,)`, bool.
        classes: `(items,)` int64, the class (or subset) of each item, for a mean over the classes of the accuracy in
            each class, such as the mean per class of zero-shot classification. Classes without items do not count.
        owner: `(items,)` int64, from 0: items with the same owner, such as the items of one image, succeed and fail
            together, and are drawn together in the resamples of an interval. Default: each item is drawn by itself.
    """

    correct: "Tensor"
    classes: "Tensor | None" = None
    owner: "Tensor | None" = None
