"""Masks: from a file to the class of each pixel.

Shapes: H height, W width
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.loading import text_of
from datamodules.recipe import readable_formats

__all__ = [
    "IGNORED",
    "Colours",
    "MaskError",
    "MaskRecipe",
    "read_colours",
    "read_lines",
    "require_names",
    "resized_mask",
]

#: The class of pixels that neither train nor count, in every batch.
IGNORED = 255
_NO_CLASS = {0, 0xFFFFFF}  # black and white, unless a table says that they are one

Mask = NDArray[np.uint8]
Colours = tuple[tuple[int, int, int], ...]


class MaskError(RuntimeError):
    """A mask that cannot be used; the message names its file, in one line."""


@dataclass(frozen=True)
class MaskRecipe:
    """From the file of a mask to its classes (H, W), uint8, with `IGNORED` where nothing counts.

    A file is a grey or palette image whose values are classes. With `colours` it is RGB, or grey or
    palette with colours that are all in the table; otherwise its values are classes all the same.

    Args:
        num_classes: K; every other value than 0 to K - 1 must be ignored.
        ignore_index: The value that is ignored in the files; None: no value is.
        reduce_zero_label: Ignore 0, too, and count classes from 1, as ADE20K does.
        colours: The colour of each class, in RGB; further colours are refused, except black and
            white if they are no class: these are ignored.

    Raises:
        MaskError: the file cannot be read, is not 8-bit, is RGB without `colours`, or holds a value
            or colour of no class.
    """

    num_classes: int
    ignore_index: int | None = IGNORED
    reduce_zero_label: bool = False
    colours: Colours | None = None

    def __call__(self, path: Path) -> Mask:
        try:
            with Image.open(path, formats=readable_formats()) as opened:
                values = self._values(path, opened)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "it is no image, or damaged"
            raise MaskError(
                f"Cannot read the mask {path} ({reason}). Replace or remove this file and its image"
            ) from error
        return self._classes(path, values)

    def _values(self, path: Path, image: Image.Image) -> Mask:
        """The stored values; those of colours are classes already."""
        if image.mode.startswith(("I", "F")):
            raise MaskError(
                f"The mask {path} has more than 8 bits (mode {image.mode}). Convert it to an 8-bit "
                "PNG whose values are the classes."
            )
        if image.mode in ("1", "L", "P"):
            values: Mask = np.array(image, dtype=np.uint8)
            in_colours = self.colours is not None and self._knows(image)
            return self._of_colours(path, np.array(image.convert("RGB"))) if in_colours else values
        if self.colours is None:
            raise MaskError(
                f"The mask {path} has colours (mode {image.mode}), and there is no table that says "
                "which is which class. Set data.colors to a CSV file with the lines name,r,g,b, or "
                "convert the masks to 8-bit PNG whose values are the classes."
            )
        return self._of_colours(path, np.array(image.convert("RGB"), dtype=np.uint8))

    def _knows(self, image: Image.Image) -> bool:
        """Whether a grey or palette image has colours of the table, and no others that count."""
        found = set(np.unique(_packed(np.array(image.convert("RGB"), dtype=np.uint8))).tolist())
        classes = self._class_of_packed().keys()
        return bool(found & classes) and found <= classes | _NO_CLASS

    def _class_of_packed(self) -> dict[int, int]:
        assert self.colours is not None
        return {int(_packed(np.array(c))): k for k, c in enumerate(self.colours)}

    def _of_colours(self, path: Path, rgb_HW3: Mask) -> Mask:
        packed_HW = _packed(rgb_HW3)
        found, inverse = np.unique(packed_HW, return_inverse=True)
        classes = self._class_of_packed()
        of_found = np.empty(len(found), dtype=np.uint8)
        for place, value in enumerate(found.tolist()):
            if value in classes:
                of_found[place] = classes[value]
            elif value in _NO_CLASS:
                of_found[place] = IGNORED
            else:
                colour = tuple(value >> shift & 255 for shift in (16, 8, 0))
                raise MaskError(
                    f"The mask {path} has the colour {colour}, which is in no line of data.colors. "
                    "Add it there; JPEG changes colours, so keep masks as PNG."
                )
        return of_found[inverse.reshape(packed_HW.shape)]

    def _classes(self, path: Path, values_HW: Mask) -> Mask:
        known = np.full(256, -1)
        first = int(self.reduce_zero_label and self.colours is None)
        known[:first] = IGNORED
        known[first : first + self.num_classes] = np.arange(self.num_classes)
        ignored = IGNORED if self.colours is not None else self.ignore_index
        if ignored is not None:
            known[ignored] = IGNORED
        used = np.flatnonzero(np.bincount(values_HW.ravel(), minlength=256))
        wrong = used[known[used] < 0]
        if len(wrong):
            nothing = "" if ignored is None else f", and {ignored} where nothing counts"
            raise MaskError(
                f"The mask {path} has the value {wrong[-1]}, and there are {self.num_classes} "
                f"classes: expected {first} to {self.num_classes - 1 + first}{nothing}. Correct "
                "the file, the names of the classes (classes.txt) or data.ignore_index."
            )
        mask: Mask = known.astype(np.uint8)[values_HW]
        return mask


def read_colours(file: Path) -> tuple[list[str], Colours]:
    """Names and colours of the classes, from a CSV file with the columns name, r, g, b.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or two classes share a colour.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no table {file} of the colours (data.colors).")
    lines = read_lines(file)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    if rows and [cell.lower() for cell in rows[0][1:]] == ["r", "g", "b"]:
        rows = rows[1:]
    names: list[str] = []
    colours: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows, 1):
        numbers = [int(cell) for cell in row[1:] if cell.isdecimal() and int(cell) < 256]
        if len(row) != 4 or len(numbers) != 3 or not row[0]:
            raise ValueError(
                f"{file}, class {number}: found {','.join(row)}, expected name,r,g,b with numbers "
                "from 0 to 255, such as road,128,64,128."
            )
        colour = (numbers[0], numbers[1], numbers[2])
        if row[0] in names or colour in colours:
            raise ValueError(f"{file}: {row[0]},{colour} repeats a name or a colour. Remove it.")
        names.append(row[0])
        colours.append(colour)
    return names, tuple(colours)


def read_lines(file: Path) -> list[str]:
    """The lines of a text that hold anything.

    Raises:
        ValueError: It cannot be read as UTF-8.
    """
    return [line.strip() for line in text_of(file).splitlines() if line.strip()]


def require_names(names: Sequence[str], origin: str) -> list[str]:
    """The names of the classes of masks, after a check.

    Raises:
        ValueError: There are fewer than 2 or more than 254, or two are equal.
    """
    if not 2 <= len(names) < IGNORED:
        raise ValueError(
            f"{origin} has {len(names)} classes; 2 to {IGNORED - 1} are expected, a name each."
        )
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"{origin} names the class {twice[0]!r} twice. Give each its own name.")
    return list(names)


def _packed(rgb: Mask) -> NDArray[np.int64]:
    red, green, blue = (rgb[..., channel].astype(np.int64) for channel in range(3))
    packed: NDArray[np.int64] = red << 16 | green << 8 | blue
    return packed


def resized_mask(mask_HW: Mask, size: Sequence[int]) -> Mask:
    """A mask at another height and width, by the nearest pixel."""
    if mask_HW.shape == tuple(size):
        return mask_HW
    image = Image.fromarray(mask_HW).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image)
