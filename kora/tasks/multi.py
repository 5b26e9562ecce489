"""Several tasks on one frozen backbone, in one forward pass: `kora.MultiTask`.

Shapes: B images, K classes, H and W pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kora.backbone.images import check_images
from kora.backbone.layer_summaries import Together
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask, DepthTask, DetectionTask, SegmentationTask
from kora.tasks.load import AdaptedModel, Picture, Prediction, expanded, file_of, fitted, load_onto

__all__ = ["Member", "MultiTask"]


class Member(NamedTuple):
    """A task on the shared backbone.

    Args:
        model: Its adapter and head, attached to the backbone.
        levels: Blocks that its head reads.
        summaries: What its head reads of earlier layers; None if it reads none.
    """

    model: AdaptedModel
    levels: tuple[int, ...]
    summaries: Any


class MultiTask(nn.Module):
    """Models of several runs that share one pass of their frozen backbone.

    For runs whose adapters leave the backbone as it is: probes and side networks (KoRA-side,
    KoRA-refined). Each answer is that of the run alone.

    Args:
        runs: Folders of runs, by a name of yours; or a list, whose names are those of the
            experiments.
        weights: Where the backbone's weights are now; None: where the first run took them from.
        device: Where to put the model.
        trust: As for `load_adapter`.

    Raises:
        FileNotFoundError: If there is no adapter folder, or no file of weights.
        ValueError: If there are fewer than two runs, or one changes the backbone, has another
            backbone, prepares images differently, or must see an image several times.
    """

    def __init__(
        self,
        runs: Mapping[str, str | Path] | Sequence[str | Path],
        *,
        weights: str | None = None,
        device: str | torch.device = "cpu",
        trust: Sequence[str] = (),
    ) -> None:
        super().__init__()
        given = [runs] if isinstance(runs, str) else runs  # a name is no list of letters
        paths = list(given.values() if isinstance(given, Mapping) else given)
        if len(paths) < 2:
            raise ValueError(f"MultiTask: found {len(paths)} runs, expected two or more.")
        found: list[Member] = []
        backbone: Backbone | None = None
        for path in paths:
            model = load_onto(path, backbone, weights=weights, trust=trust)
            backbone = model.backbone
            found.append(Member(model, backbone.levels, backbone.layer_summaries))
            backbone.levels, backbone.layer_summaries = (), None
            _require_shareable(model, found[0].model)
        assert backbone is not None
        names = list(runs) if isinstance(runs, Mapping) else _names([m.model for m in found])
        self.members: dict[str, Member] = dict(zip(names, found, strict=True))
        self.models = nn.ModuleList(member.model for member in found)
        backbone.levels = tuple(sorted({number for one in found for number in one.levels}))
        with_layers = [one.summaries for one in found if one.summaries is not None]
        backbone.layer_summaries = Together(with_layers) if with_layers else None
        self.recipe = found[0].model.recipe
        self.eval().to(device)

    @property
    def backbone(self) -> Backbone:
        """The shared backbone."""
        backbone: Backbone = self.models[0].backbone  # type: ignore[assignment]
        return backbone

    @property
    def models_by_name(self) -> dict[str, AdaptedModel]:
        """The model of each run."""
        return {name: member.model for name, member in self.members.items()}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """The answer of each task to uint8 images (B, 3, H, W), by its name.

        Logits (B, K) of classes, metres (B, H, W) of depth, scores (B, K, H, W) of segmentation,
        and the boxes of each image, as `AdaptedModel` gives them.

        Raises:
            ValueError: For images of another type, range or shape.
        """
        check_images(images)
        size = self.recipe.shown((images.shape[-2], images.shape[-1]))
        images = fitted(images, self.recipe).to(self.backbone.mean.device)
        return self.answers(images, size)

    def answers(self, images: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """The answers for prepared images (B, 3, h, w), maps and boxes at this size."""
        outputs = self.outputs(images)
        return {
            name: member.model.answer(outputs[name], size) for name, member in self.members.items()
        }

    def outputs(self, images: Tensor) -> dict[str, Any]:
        """What each head gives for images (B, 3, H, W), from one pass of the backbone."""
        members = list(self.members.values())
        halves = [member.model.adapter.frozen_pass() for member in members]
        for half in halves:
            half.listen()
        features = self.backbone(images)
        together: Any = self.backbone.layer_summaries
        layers = [] if together is None else list(together.last)
        all_levels = dict(zip(self.backbone.levels, features.levels, strict=True))
        found = {}
        for (name, member), half in zip(self.members.items(), halves, strict=True):
            own = features._replace(
                layers=None if member.summaries is None else layers.pop(0),
                levels=tuple(all_levels[number] for number in member.levels),
            )
            found[name] = member.model.head(half.features(half.taken(own)))
        return found

    @torch.inference_mode()
    def predict(self, picture: Picture, *, top_k: int = 1) -> dict[str, Any]:
        """The answer of each task to one picture, by its name.

        A `Prediction` of classes, metres (H, W) of depth, the class of each pixel (H, W) of
        segmentation, a list of `Detection`; arrays are NumPy's.

        Args:
            picture: As `AdaptedModel.predict` takes a single one.
            top_k: How many classes a `Prediction` names; at most all of them.

        Raises:
            ValueError: If `top_k` is less than 1.
            UnreadableImageError: If the picture cannot be read.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: expected 1 or more.")
        picture = expanded(picture)
        opened = self.recipe.open(picture)
        size = self.recipe.shown((opened.height, opened.width))
        model = next(iter(self.members.values())).model
        found = self.answers(model.prepare(opened).to(self.backbone.mean.device), size)
        answers: dict[str, Any] = {}
        for name, member in self.members.items():
            task, value = member.model.task, found[name]
            if isinstance(task, ClassificationTask):
                top = member.model.named(value, top_k)[0]
                answers[name] = Prediction(*top[0], top, file_of(picture))
            elif isinstance(task, DetectionTask):
                answers[name] = member.model.detected(value[0])
            elif isinstance(task, SegmentationTask):
                answers[name] = value[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
            else:
                answers[name] = value[0].cpu().numpy()
        return answers


def _require_shareable(model: AdaptedModel, first: AdaptedModel) -> None:
    """Refuse a run that cannot share its pass of the backbone with that of `first`."""
    try:
        model.adapter.frozen_pass()
    except ValueError as error:
        raise ValueError(
            f"{model.folder} cannot share a pass: {error}. Probes and side networks (KoRA-side, "
            "KoRA-refined) can; load this run alone."
        ) from error
    if model.recipe != first.recipe:
        raise ValueError(
            f"{model.folder} prepares images by {model.recipe}, and {first.folder} by "
            f"{first.recipe}: they see other pixels. Train both with the same data.resize and "
            "data.image_size, or on Synthetic with the same data.maps."
        )
    task = model.task
    slides = isinstance(task, SegmentationTask) and task.protocol.window == "slide"
    mirrors = isinstance(task, DepthTask | SegmentationTask) and task.protocol.flip_tta
    if slides or mirrors:
        raise ValueError(
            f"{model.folder} was evaluated on {'windows' if slides else 'mirrored images'} of each "
            "image, and a shared pass sees it once. Load it alone."
        )


def _names(models: Sequence[AdaptedModel]) -> list[str]:
    """A name for each model: its experiment, and a number if that is taken."""
    names: list[str] = []
    for model in models:
        # A record may be anybody's, and predictions lie in folders of these names.
        name = str(model.record.get("experiment") or "").replace("/", "-")
        if not name.strip("."):
            name = model.folder.parent.name
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names
