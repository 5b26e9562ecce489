"""What `kora.adapt` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kora.tasks.load import AdaptedModel, load_adapter

__all__ = ["Adapted", "AdaptedBoxes", "AdaptedMasks", "Answer"]


@dataclass(frozen=True)
class Answer:
    """What the results of all tasks have in common.

    Args:
        folder: Folder of everything that was made.
        run: The run of the best strategy, with its adapter.
        strategy: Name of the best strategy.
        interval: The 95 % interval of its test score, over test images.
        sentence: The result in words, with the linear probe and a guess that sees no image.
        page: An HTML page for a browser.
    """

    folder: Path
    run: Path
    strategy: str
    interval: tuple[float, float]
    sentence: str
    page: Path

    @cached_property
    def model(self) -> AdaptedModel:
        """The model, loaded from its run."""
        return load_adapter(self.run)


@dataclass(frozen=True)
class Adapted(Answer):
    """The result of `adapt` for classes of pictures.

    Args:
        accuracy: Accuracy on the test pictures, which were used once.
    """

    accuracy: float


@dataclass(frozen=True)
class AdaptedMasks(Answer):
    """The result of `adapt` for images with masks.

    Args:
        miou: Mean IoU over the test images, which were used once.
    """

    miou: float


@dataclass(frozen=True)
class AdaptedBoxes(Answer):
    """The result of `adapt` for images with boxes.

    Args:
        map: Mean average precision over the test images, which were used once.
    """

    map: float
