"""From files to batches: decoded images, and data sets that fetch whole batches.

Shapes: B images a batch, n images of a split, H height, W width
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

__all__ = [
    "ArrayDataset",
    "Resize",
    "UnreadableImageError",
    "as_is",
    "decode_image",
    "decode_images",
    "fit_image",
    "read_upright",
    "unreadable",
]

Resize = Literal["crop", "stretch"]


class ArrayDataset(Dataset[dict[str, Tensor]]):
    """Tensors with a common first axis, fetched a batch at a time.

    `__getitems__` indexes each tensor once per batch, so there is no Python loop over images; use
    it with `collate_fn=as_is`.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        sizes = {name: len(column) for name, column in columns.items()}
        assert len(set(sizes.values())) == 1, f"columns differ in length: {sizes}"
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        return {name: column.index_select(0, picked) for name, column in self.columns.items()}


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for data sets whose `__getitems__` already returns a batch."""
    return batch


class UnreadableImageError(RuntimeError):
    """An image file that cannot be used; the message names it.

    A loader process hands an error on as the text of a traceback: only our message is kept of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def decode_image(path: Path, *, size: tuple[int, int], resize: Resize | None) -> NDArray[np.uint8]:
    """RGB image (H, W, 3) of a file, upright, with `size` = (H, W).

    Args:
        path: any format that Pillow reads; greyscale and palette images become RGB.
        size: height and width in pixels.
        resize: `crop` scales the image to cover `size` and cuts the centre, `stretch` ignores its
            proportions (both antialiased); None: the file must have this size.

    Raises:
        UnreadableImageError: the file cannot be read, holds more than 8 bits a channel, or has
            the wrong size.
    """
    height, width = size
    image = _opened(path, upright=resize is not None)
    if resize is not None:
        image = fit_image(image, size=size, resize=resize)
    elif image.size != (width, height):
        raise UnreadableImageError(
            f"The image {path} is {image.height} x {image.width} pixels, expected {height} x "
            f"{width}. Replace or remove this file."
        )
    return np.asarray(image)


def read_upright(path: Path) -> Image.Image:
    """RGB image of a file, upright, at its own size.

    Raises:
        UnreadableImageError: the file cannot be read, or holds more than 8 bits a channel.
    """
    return _opened(path, upright=True)


def fit_image(image: Image.Image, *, size: tuple[int, int], resize: Resize) -> Image.Image:
    """The image at `size` = (H, W), as `decode_image` says."""
    height, width = size
    if resize == "crop":
        return ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _opened(path: Path, *, upright: bool) -> Image.Image:
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise OSError("more than 8 bits a channel; convert it to 8-bit RGB")
            return (ImageOps.exif_transpose(opened) if upright else opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"Cannot read the image {path} ({error}). Replace or remove this file."
        ) from error


def decode_images(
    paths: Sequence[Path],
    *,
    size: tuple[int, int],
    resize: Resize | None,
    what: str,
    bar: tqdm[Any] | None = None,
) -> Tensor:
    """uint8 images (n, 3, H, W) of these files, decoded in threads.

    A progress bar, named after `what`, appears when it takes longer than two seconds; where there
    is a `bar` already, that is moved instead.

    Raises:
        UnreadableImageError: as `decode_image`.
    """
    images = torch.empty((len(paths), 3, *size), dtype=torch.uint8)
    target = images.numpy()

    def decode(row: int) -> None:
        pixels = decode_image(paths[row], size=size, resize=resize)
        target[row] = pixels.transpose(2, 0, 1)

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        done: Iterable[None] = pool.map(decode, range(len(paths)))
        if bar is None:
            done = tqdm(done, total=len(paths), desc=f"Decoding {what}", delay=2, disable=None)
        for _ in done:
            if bar is not None:
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def unreadable(
    paths: Sequence[Path], *, size: tuple[int, int], resize: Resize | None, what: str
) -> dict[int, str]:
    """Places of the files that cannot be decoded, with the reason of each; decodes all, in threads.

    A progress bar, named after `what`, appears when it takes longer than two seconds.
    """

    def reason(path: Path) -> str | None:
        try:
            decode_image(path, size=size, resize=resize)
        except UnreadableImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(reason, paths)
        shown = tqdm(reasons, total=len(paths), desc=f"Checking {what}", delay=2, disable=None)
        return {place: text for place, text in enumerate(shown) if text is not None}
