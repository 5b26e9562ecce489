"""The labelled file of NYU Depth V2: 1449 frames in one MATLAB v7.3 file, which is HDF5.

Source: Silberman et al. 2012; http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/

Shapes: N frames of the file, B frames read at once, H height, W width. MATLAB stores the axes of an
array in reverse, so `images` is (N, 3, W, H) here and `depths` is (N, W, H).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from datamodules.nyu.checks import check_depth, find_array, open_hdf5, read_into
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["DepthKind", "LabelledFile"]

DepthKind = Literal["depths", "raw"]
_KEYS: dict[DepthKind, str] = {"depths": "depths", "raw": "rawDepths"}
_SAMPLE_BLOCKS, _SAMPLE_BYTES = 256, 1 << 16


class LabelledFile:
    """Frames of the labelled file, upright and in metres.

    The constructor looks at names, types, shapes and scenes only. `read` opens and closes the file,
    so nothing stays open between two calls.

    Depth: `depths` has the holes filled in; `raw` is what the sensor measured, 0 elsewhere.

    Raises:
        UnreadableImageError: the file is damaged, or not in the official format.
    """

    def __init__(self, path: Path, *, depth: DepthKind) -> None:
        self.path = path
        self.depth: DepthKind = depth
        self.key = _KEYS[depth]
        with open_hdf5(path) as file:
            images, depths = self._find(file)
            self.frames = int(images.shape[0])
            self.size = (int(images.shape[3]), int(images.shape[2]))
            self._check_shapes(images.shape, depths.shape)
            #: Scene of each frame (N,), such as kitchen_0004; None if the file does not say.
            self.scenes = self._read_scenes(file)

    def read(self, frames: IntArray) -> dict[str, Tensor]:
        """These frames, counted from 0: `image` uint8 (B, 3, H, W), `depth_m` float32 (B, H, W).

        They are read in the order of the file and returned in the order asked for.

        Raises:
            UnreadableImageError: a frame is damaged, or its depth cannot be metres.
        """
        height, width = self.size
        image = torch.empty((len(frames), 3, height, width), dtype=torch.uint8)
        depth = torch.empty((len(frames), height, width), dtype=torch.float32)
        image_BCHW, depth_BHW = image.numpy(), depth.numpy()
        image_CWH = np.empty((3, width, height), dtype=np.uint8)
        depth_WH = np.empty((width, height), dtype=np.float32)
        path = self.path
        with open_hdf5(path) as file:
            images, depths = self._find(file)
            for row in np.argsort(frames, kind="stable"):
                frame = int(frames[row])
                name, where = f"frame {frame}", np.s_[frame]
                read_into(images, image_CWH, where=where, path=path, name=f"{name} of 'images'")
                read_into(depths, depth_WH, where=where, path=path, name=f"{name} of {self.key!r}")
                check_depth(depth_WH.T, path=path, frame=name, key=self.key)
                image_BCHW[row] = image_CWH.transpose(0, 2, 1)
                depth_BHW[row] = depth_WH.T
        return {"image": image, "depth_m": depth}

    def fingerprint(self) -> str:
        """SHA-256 of the size and of 256 blocks of 64 KiB, evenly spread; small files whole."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        with self.path.open("rb") as file:
            if size <= _SAMPLE_BLOCKS * _SAMPLE_BYTES:
                digest.update(file.read())
            else:
                for start in np.linspace(0, size - _SAMPLE_BYTES, _SAMPLE_BLOCKS).astype(np.int64):
                    file.seek(int(start))
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def _find(self, file: Any) -> tuple[Any, Any]:
        images = find_array(
            file, "images", path=self.path, dtype="uint8", layout="(N, 3, W, H)", ndim=4
        )
        depths = find_array(
            file, self.key, path=self.path, dtype="float32", layout="(N, W, H)", ndim=3
        )
        return images, depths

    def _check_shapes(self, images: tuple[int, ...], depths: tuple[int, ...]) -> None:
        frames, channels, width, height = images
        if channels != 3 or width < height or min(images) < 1:
            raise UnreadableImageError(
                f"{self.path}: 'images' has the shape {images}, expected (N, 3, W, H) with W of at "
                "least H, such as (1449, 3, 640, 480): MATLAB reverses the axes. Use the official "
                "file, or transpose the array."
            )
        if depths != (frames, width, height):
            turned = depths == (frames, height, width)
            raise UnreadableImageError(
                f"{self.path}: {self.key!r} has the shape {depths} and 'images' {images}, "
                f"expected {(frames, width, height)} for the depth: "
                + (
                    "its last two axes are in the wrong order. Transpose them."
                    if turned
                    else "images and depth must have the same frames and size. Get the file again."
                )
            )

    def _read_scenes(self, file: Any) -> list[str] | None:
        """Scene of each frame: `scenes` holds a reference to an array of character codes each."""
        if "scenes" not in file:
            return None
        cells = find_array(
            file, "scenes", path=self.path, dtype="object", layout="(1, N) references", ndim=2
        )
        if h5py.check_ref_dtype(cells.dtype) is not h5py.Reference or cells.size != self.frames:
            raise UnreadableImageError(
                f"{self.path}: 'scenes' is {cells.dtype} {cells.shape}, expected (1, N) references "
                f"to the names of the scenes of {self.frames} frames. Use the official file."
            )
        names = []
        for frame, reference in enumerate(cells[()].ravel()):
            codes = file[reference] if reference else None
            if not isinstance(codes, h5py.Dataset) or codes.dtype.kind != "u":
                raise UnreadableImageError(
                    f"{self.path}, frame {frame}: 'scenes' does not lead to a name, expected a "
                    "reference to character codes. Use the official file."
                )
            names.append("".join(chr(code) for code in codes[()].ravel()))
        return names
