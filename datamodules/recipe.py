"""One recipe from a picture to the pixels of a model, in training and in every prediction.

Needs only Pillow and NumPy: an export puts the code of this file into its `prepare.py`.

Shapes: H height, W width, C channels
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "FORMATS",
    "GREY",
    "Fit",
    "FixedFit",
    "ImageRecipe",
    "Transparency",
    "UnreadableImageError",
    "readable_formats",
    "upright_size",
]

FixedFit = Literal["crop", "stretch"]  # makes pictures of one size
Fit = Literal[FixedFit, "cover", "contain"]
Transparency = Literal["white", "dropped"]

#: What fills an image outside of its picture: the mean of ImageNet, which backbones normalise to
#: nearly 0.
GREY = (124, 116, 104)

#: Pictures above `Image.MAX_IMAGE_PIXELS` are refused here, so Pillow's warning adds nothing.
_VAST = (Image.DecompressionBombError, Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

#: Pillow's formats of pictures. Not EPS: it is a program, and Pillow lets Ghostscript run it.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI",
    "TGA", "TIFF", "WEBP",
)  # fmt: skip

_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)  # EXIF: turned by a quarter
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels of an array


class UnreadableImageError(RuntimeError):
    """A picture that cannot be used; the message names it, in one line.

    A worker passes an error on as the text of a traceback: only the message itself is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class ImageRecipe:
    """Pixels (3, H, W), uint8 in RGB, of a picture.

    A picture is a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W); C is 1
    for grey, 3 for RGB and 4 for RGBA, the numbers uint8, or floating point in [0, 1], which is
    rounded to 8 bits. An array is treated like a photo with these pixels. In this order:

    1. The first frame of a file with several (animation, pages) is taken.
    2. The picture is turned upright, as its EXIF orientation says.
    3. It becomes RGB. Grey is repeated, a palette looked up, CMYK converted by Pillow's formula
       without a colour profile. More than 8 bits in a single channel are refused.
    4. `fit` brings it to `size`, with Pillow's antialiased bicubic filter on 8 bits,
       first the width, then the height.

    Args:
        fit: `crop` scales the picture to cover `size` and cuts the centre, `stretch` ignores its
            proportions, `cover` scales it to cover `size` and cuts nothing, so its size differs;
            `contain` scales it to fit inside `size`, puts it at the top left and fills the rest
            with `GREY`; None keeps its size.
        size: height and width in pixels; without `fit` a picture must have it already.
        transparency: `white` makes transparent pixels white; `dropped` shows the colours that are
            hidden there.

    Raises:
        UnreadableImageError: the picture cannot be read, is no file, has no pixels or more than
            `Image.MAX_IMAGE_PIXELS` (89,478,485, unless a program of yours sets another number),
            more than 8 bits in a channel, or another size than it must have.
    """

    fit: Fit | None = None
    size: tuple[int, int] | None = None
    transparency: Transparency = "white"

    def __post_init__(self) -> None:
        if self.fit not in (None, *get_args(Fit)) or self.transparency not in get_args(
            Transparency
        ):
            raise ValueError(f"fit={self.fit!r}, transparency={self.transparency!r}")
        if self.fit is not None and (self.size is None or min(self.size) < 1):
            raise ValueError(f"fit={self.fit!r} needs a size, not {self.size}")

    def __call__(self, picture: Any) -> NDArray[np.uint8]:
        return self.pixels(self.open(picture))

    def open(self, picture: Any) -> Image.Image:
        """The whole picture, upright and in RGB, at its own size."""
        is_file = isinstance(picture, (str, os.PathLike))
        what = _name(picture)
        advice = " Replace or remove this file." if is_file else ""
        try:
            if is_file:
                _require_file(picture)
                with Image.open(picture, formats=readable_formats()) as opened:
                    image = self._rgb(opened)
            else:
                whole = picture if isinstance(picture, Image.Image) else _from_array(picture)
                image = self._rgb(whole)
        except Exception as error:  # a damaged file can raise anything
            reason = _reason(error, picture)
            raise UnreadableImageError(f"Cannot read {what} ({reason}).{advice}") from error
        if self.fit is None and self.size not in (None, (image.height, image.width)):
            assert self.size is not None
            raise UnreadableImageError(
                f"{what[0].upper()}{what[1:]} is {image.height} x {image.width} pixels, expected "
                f"{self.size[0]} x {self.size[1]}.{advice}"
            )
        return image

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The fitted pixels (3, H, W) of what `open` gave."""
        if self.fit is not None and self.size is not None:
            height, width = self.fitted_content((image.height, image.width))
            high, wide = float(image.height), float(image.width)
            if self.fit == "crop":
                ratio = width / height
                high, wide = min(high, wide / ratio), min(wide, high * ratio)
            left, top = (image.width - wide) * 0.5, (image.height - high) * 0.5
            # One axis after the other: which comes first in one call depends on Pillow's version.
            for size, box in (
                ((width, image.height), (left, 0, left + wide, image.height)),
                ((width, height), (0, top, width, top + high)),
            ):
                image = image.resize(size, Image.Resampling.BICUBIC, box=box)
            if self.fit == "contain":
                content = image
                image = Image.new("RGB", (self.size[1], self.size[0]), GREY)
                image.paste(content)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the pixels of a picture of `size`."""
        if self.fit is None or self.size is None:
            return size
        if self.fit != "cover":
            return self.size
        scale = max(self.size[0] / size[0], self.size[1] / size[1])
        return (
            max(self.size[0], round(size[0] * scale)),
            max(self.size[1], round(size[1] * scale)),
        )

    def fitted_content(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width, within the pixels of a picture of `size`, that show the picture.

        Less than `fitted` only for `contain`, whose rest is filled. In whole numbers, so that every
        machine and every graph has the same: the other side is rounded, halves up.
        """
        if self.fit != "contain" or self.size is None:
            return self.fitted(size)
        (high, wide), (height, width) = self.size, size
        if height * wide >= width * high:
            return high, max(1, (2 * width * high + height) // (2 * height))
        return max(1, (2 * height * wide + width) // (2 * width)), wide

    def shown(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (H, W) that the model sees of a picture of `size`: less what a crop cuts off."""
        return self.size if self.fit == "crop" and self.size is not None else size

    def _rgb(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel; convert it to 8-bit RGB")
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise Image.DecompressionBombError
        if 0 in image.size:
            raise ValueError(f"it has no pixels: {image.height} x {image.width}")
        upright = ImageOps.exif_transpose(image)
        if self.fit is not None and self.size is not None:  # what `pixels` makes in between
            height, width = self.fitted_content((upright.height, upright.width))
            if width * max(height, upright.height) > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(
                    f"{upright.height} x {upright.width} pixels are too thin to resize"
                )
        see_through = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
        if see_through and self.transparency == "white":
            over = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        return upright.convert("RGB")


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a picture, turned as its EXIF orientation says; its pixels are not read.

    Raises:
        UnreadableImageError: It cannot be opened.
    """
    try:
        _require_file(path)
        with Image.open(path, formats=readable_formats()) as opened:
            # Pillow turns the size of a TIFF itself.
            turned = opened.format != "TIFF" and opened.getexif().get(_ORIENTATION, 1) in _SWAPPED
            width, height = opened.size
    except Exception as error:  # a damaged file can raise anything
        reason = _reason(error, path)
        raise UnreadableImageError(
            f"Cannot read {_name(path)} ({reason}). Replace or remove this file."
        ) from error
    return (width, height) if turned else (height, width)


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _require_file(path: Any) -> None:
    """Refuse pipes and devices: reading a pipe that nobody writes to never ends."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):  # Pillow itself refuses a folder
        raise ValueError("it is a pipe, a socket or a device, and no file")


def _from_array(picture: Any) -> Image.Image:
    """An array (H, W), (H, W, C) or a tensor (C, H, W) as a PIL image."""
    if hasattr(picture, "detach"):  # a tensor of torch
        array, channels, layout = picture.detach().cpu().numpy(), 0, "(C, H, W)"
    else:
        array, channels, layout = picture, -1, "(H, W) or (H, W, C)"
        array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[channels] not in _MODES:
        raise ValueError(f"expected {layout} with 1, 3 or 4 channels")
    pixels = np.moveaxis(array, channels, -1)
    if pixels.size == 0:
        raise ValueError(f"it has no pixels: {pixels.shape[0]} x {pixels.shape[1]}")
    if pixels.dtype.kind in "iu" and pixels.dtype != np.uint8:
        raise ValueError("more than 8 bits a channel; convert it to 8-bit RGB")
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ValueError(
                f"floating point from {low:.3g} to {high:.3g}; expected [0, 1], not normalised"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype}; expected uint8, or floating point in [0, 1]")
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _name(picture: Any) -> str:
    if isinstance(picture, (str, os.PathLike)):
        # In one line: the name of a file must not look like another message.
        return f"the image {''.join(c if c >= ' ' else ascii(c)[1:-1] for c in str(picture))}"
    if isinstance(picture, Image.Image):
        named = getattr(picture, "filename", "")
        return f"the image {named}" if named else "the PIL image"
    if not hasattr(picture, "shape"):
        raise TypeError(
            f"A picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}."
        )
    kind = "tensor" if hasattr(picture, "detach") else "array"
    return f"the {kind} of shape {tuple(picture.shape)} and {picture.dtype}"


def _reason(error: Exception, picture: Any) -> str:
    if isinstance(error, UnidentifiedImageError):
        if isinstance(picture, (str, os.PathLike)) and Path(picture).stat().st_size == 0:
            return "the file is empty"
        return "it is no image, or of a format that Pillow does not read"
    if isinstance(error, _VAST):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
