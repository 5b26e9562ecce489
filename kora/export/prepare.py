"""`prepare.py` of an export: the recipe of the run as code that needs no kora.

Its first part is the code of `datamodules/recipe.py` itself, so that there are no two versions.

Shapes: B pictures, h and w pixels at which the model of timm runs.
"""

from __future__ import annotations

from pathlib import Path

from datamodules import recipe as recipe_module
from datamodules.recipe import ImageRecipe
from kora import __version__
from kora.tasks import ClassificationTask
from kora.tasks.load import AdaptedModel

__all__ = ["PREPARE", "USE", "write_prepare"]

PREPARE = "prepare.py"

#: Lines that import `prepare`; FOLDER stands for the folder of the export.
USE = ("import sys", "sys.path.insert(0, 'FOLDER')", "from prepare import prepare")

_HEAD = '''"""Prepares pictures for the model in this folder, exactly as the run did in training.

Written by kora {version}. Needs Pillow, NumPy{torch}, not kora:

    from prepare import prepare
    batch = prepare("photo.jpg")  # or several pictures, in any form that ImageRecipe takes

Shapes: B pictures, H height, W width, C channels
"""

'''

_PIXELS = '''

RECIPE = ImageRecipe(fit={fit!r}, size={size!r}, transparency={transparency!r})


def prepare(*pictures: Any) -> NDArray[np.uint8]:
    """Pixels (B, 3, H, W), uint8, for the graph, which resizes and normalises them itself."""
    images = [RECIPE(picture) for picture in pictures]
    sizes = {{image.shape for image in images}}
    if len(sizes) != 1:
        raise ValueError("pictures of one batch need one size; prepare them one by one")
    return np.stack(images)
'''

_TENSOR = '''

RECIPE = ImageRecipe(fit={fit!r}, size={size!r}, transparency={transparency!r})
SIZE = {backbone_size!r}  # at which the model runs
MEAN, STD = {mean!r}, {std!r}


def prepare(*pictures: Any) -> torch.Tensor:
    """Tensor (B, 3, h, w), float32 and normalised, for the model."""
    inputs = []
    for picture in pictures:
        x = torch.from_numpy(RECIPE(picture))[None].float() / 255
        if x.shape[-2:] != SIZE:
            x = F.interpolate(
                x, SIZE, mode={interpolation!r}, antialias=True, align_corners=False
            ).clamp(0, 1)
        inputs.append(x)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.cat(inputs) - mean) / std
'''


def write_prepare(model: AdaptedModel, folder: Path, *, pixels: bool) -> None:
    """Write `prepare.py`; with `pixels` it gives uint8, for a model that resizes and normalises."""
    source = Path(recipe_module.__file__).read_text(encoding="utf-8")
    start = source.index("from __future__")
    names = source.index("__all__ = ")
    end = source.index("]\n", names) + 2
    imports = source[start:names].rstrip() + "\n"
    if not pixels:
        imports += "import torch\nimport torch.nn.functional as F\n"
    backbone, recipe = model.backbone, model.recipe
    if pixels and not isinstance(model.task, ClassificationTask):
        # The graph fits pictures itself, and answers at their own size.
        recipe = ImageRecipe(transparency=recipe.transparency)
    values = {**backbone.model.pretrained_cfg, **backbone.normalisation}
    foot = (_PIXELS if pixels else _TENSOR).format(
        fit=recipe.fit,
        size=recipe.size,
        transparency=recipe.transparency,
        backbone_size=backbone.size,
        interpolation=backbone.interpolation,
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )
    head = _HEAD.format(version=__version__, torch="" if pixels else " and torch")
    text = f'{head}{imports}\n__all__ = ["prepare"]\n{source[end:].rstrip()}\n{foot}'
    (folder / PREPARE).write_text(text, encoding="utf-8")
