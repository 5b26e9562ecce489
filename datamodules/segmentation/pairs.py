"""Which image has which mask, in three layouts of folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.loading import by_stem, folders_in, image_suffixes, text_of

__all__ = ["Layout", "LayoutName", "Pair", "find_layout"]

LayoutName = Literal["folder", "voc2012", "ade20k"]
_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `name` is the path of the image below the folder of its part."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """The layout of a folder.

    Args:
        name: `folder` is `images/` and `masks/`, in a folder for each part or without parts;
            `voc2012` has lists in `ImageSets/Segmentation`; `ade20k` has `images/training` and
            `annotations/training`.
        root: The folder that holds it.
        parts: The names of its parts; empty if there are none.
    """

    name: LayoutName
    root: Path
    parts: tuple[str, ...]

    def pairs(self, part: str | None) -> list[Pair]:
        """The pairs of a part, sorted by name; None is the whole of a folder without parts.

        Raises:
            FileNotFoundError: The part is not there, or an image has no mask.
            ValueError: It holds no image, two files have one name, or a mask has no image.
        """
        if self.name == "voc2012":
            assert part is not None
            return self._listed(part)
        if self.name == "ade20k":
            assert part is not None
            folders = self.root / "images" / part, self.root / "annotations" / part
        else:
            here = self.root if part is None else self.root / part
            folders = here / "images", here / "masks"
        for folder in folders:
            if not folder.is_dir():
                near = folder.parent if folder.parent.is_dir() else self.root
                found = ", ".join(folders_in(near)) or "none"
                raise FileNotFoundError(
                    f"There is no folder {folder} (folders in {near}: {found}). A part has images "
                    "and masks; data.train_dir, data.test_dir and data.val_dir name parts."
                )
        return _by_name(*folders)

    def _listed(self, part: str) -> list[Pair]:
        file = self.root / "ImageSets/Segmentation" / f"{part}.txt"
        if not file.is_file():
            lists = ", ".join(self.parts) or "none"
            raise FileNotFoundError(
                f"There is no list {file} (lists there: {lists}). data.train_dir, data.test_dir "
                "and data.val_dir name lists."
            )
        found = []
        for stem in text_of(file).split():
            image = self.root / "JPEGImages" / f"{stem}.jpg"
            mask = self.root / "SegmentationClass" / f"{stem}.png"
            for path in (image, mask):
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{file} names {stem}, and there is no {path}. Put it there, or remove the "
                        "line."
                    )
            found.append(Pair(f"{stem}.jpg", image, mask))
        if not found:
            raise ValueError(f"{file} names no image. One name a line is expected.")
        return found


def find_layout(root: Path) -> Layout:
    """The layout of a folder, from what is in it.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: It has none of the layouts.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} (data.root).")
    for here in (root, root / "VOCdevkit/VOC2012", root / "VOC2012"):
        if (here / "ImageSets/Segmentation").is_dir():
            lists = sorted((here / "ImageSets/Segmentation").glob("*.txt"))
            return Layout("voc2012", here, tuple(path.stem for path in lists))
    for here in (root, root / "ADEChallengeData2016"):
        if (here / "annotations/training").is_dir() and (here / "images/training").is_dir():
            return Layout("ade20k", here, tuple(folders_in(here / "images")))
    if (root / "images").is_dir() and (root / "masks").is_dir():
        inside = sorted(set(folders_in(root / "images")) & {"train", "training", "val", "test"})
        if inside:
            raise ValueError(
                f"{root / 'images'} is divided into {' and '.join(inside)}, and KoRA expects the "
                f"parts above: {inside[0]}/images and {inside[0]}/masks. Move the folders, or all "
                "images would be mixed and split anew."
            )
        return Layout("folder", root, ())
    parts = tuple(name for name in folders_in(root) if (root / name / "images").is_dir())
    if parts:
        return Layout("folder", root, parts)
    found = ", ".join(folders_in(root)) or "none"
    raise ValueError(
        f"{root} has no layout that SegmentationFolder knows (folders in it: {found}). Expected "
        "images/ and masks/, or train/images, train/masks, test/images and test/masks, or the "
        "folders of VOC2012 or ADE20K. The folder of the masks is called masks."
    )


def _by_name(images: Path, masks: Path) -> list[Pair]:
    """Pairs of images and masks with one path below their folders, less the ending."""
    of_images = by_stem(images, image_suffixes())
    of_masks = by_stem(masks, _MASK_SUFFIXES)
    if not of_images:
        raise ValueError(f"{images} holds no image.")
    if not of_masks:
        known = ", ".join(_MASK_SUFFIXES)
        raise ValueError(
            f"{masks} holds no mask ({known}). JPEG changes values, so it is no format of masks."
        )
    for mine, others, folder, what in (
        (of_images, of_masks, masks, "mask"),
        (of_masks, of_images, images, "image"),
    ):
        alone = sorted(mine.keys() - others.keys())
        if alone:
            more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
            raise FileNotFoundError(
                f"{mine[alone[0]]} has no {what} {alone[0]} in {folder}{more}. A pair has one "
                "name, less the ending. Put the file there, or remove its partner."
            )
    return [
        Pair(path.relative_to(images).as_posix(), path, of_masks[key])
        for key, path in sorted(of_images.items())
    ]
