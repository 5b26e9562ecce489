"""NYU Depth V2 as one HDF5 file a frame: `<part>/<scene>/<n>.h5`, the "sparse-to-dense" layout.

Source: Ma and Karaman 2018, arXiv:1709.07492, whose `val` is the official test set.

Shapes: N frames of a part, B frames read at once, H height, W width
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.nyu.checks import check_depth, find_array, open_hdf5, read_into
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["FrameFolder"]


class FrameFolder:
    """Frames of one part, with a folder for each scene, in the sorted order of their paths.

    The constructor lists the files and opens the first one. `read` opens and closes each file, so
    nothing stays open between two calls.

    Raises:
        FileNotFoundError: there are no frames.
        UnreadableImageError: the first frame is damaged or in another format.
    """

    key = "depth"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [
            Path(scene, name)
            for scene in _sorted_entries(folder, folders=True)
            for name in _sorted_entries(folder / scene, folders=False)
        ]
        if not self.paths:
            raise FileNotFoundError(
                f"{folder} holds no frames. Expected {folder}/<scene>/<n>.h5, each with 'rgb' "
                "(3, H, W) uint8 and 'depth' (H, W) float32 in metres. Is it extracted?"
            )
        # basement_0001a and basement_0001b are recordings of one scene.
        self.scenes = [re.sub(r"(?<=\d)[a-z]$", "", path.parent.name) for path in self.paths]
        first = folder / self.paths[0]
        with open_hdf5(first) as file:
            self.size = self._find(file, first)[2]

    def read(self, frames: IntArray) -> dict[str, Tensor]:
        """These frames, counted from 0: `image` uint8 (B, 3, H, W), `depth_m` float32 (B, H, W).

        Raises:
            UnreadableImageError: a frame is damaged, in another format or of another size, or its
                depth cannot be metres.
        """
        image = torch.empty((len(frames), 3, *self.size), dtype=torch.uint8)
        depth = torch.empty((len(frames), *self.size), dtype=torch.float32)
        image_BCHW, depth_BHW = image.numpy(), depth.numpy()
        for row in np.argsort(frames, kind="stable"):
            path = self.folder / self.paths[frames[row]]
            with open_hdf5(path) as file:
                rgb, metres, size = self._find(file, path)
                if size != self.size:
                    raise UnreadableImageError(
                        f"{path} has {size[0]} x {size[1]} pixels, expected {self.size[0]} x "
                        f"{self.size[1]} as in {self.folder / self.paths[0]}. Frames of one batch "
                        "must have one size: resize or remove this file."
                    )
                read_into(rgb, image_BCHW[row], where=np.s_[...], path=path, name="'rgb'")
                read_into(metres, depth_BHW[row], where=np.s_[...], path=path, name="'depth'")
            check_depth(depth_BHW[row], path=path, frame="", key="depth")
        return {"image": image, "depth_m": depth}

    def fingerprint(self) -> str:
        """SHA-256 over the paths (below the folder) and sizes of all frames."""
        lines = (f"{path.as_posix()} {(self.folder / path).stat().st_size}" for path in self.paths)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _find(self, file: Any, path: Path) -> tuple[Any, Any, tuple[int, int]]:
        """`rgb`, `depth` and the size (H, W) of an open file, checked against each other."""
        rgb = find_array(file, "rgb", path=path, dtype="uint8", layout="(3, H, W)", ndim=3)
        depth = find_array(file, "depth", path=path, dtype="float32", layout="(H, W)", ndim=2)
        channels, height, width = rgb.shape
        if channels != 3 or height > width:
            raise UnreadableImageError(
                f"{path}: 'rgb' has the shape {rgb.shape}, expected (3, H, W) with W of at least "
                "H, such as (3, 480, 640): the axes are in another order. Transpose the array."
            )
        if depth.shape != (height, width):
            raise UnreadableImageError(
                f"{path}: 'rgb' has {height} x {width} pixels but 'depth' the shape "
                f"{depth.shape}, expected {(height, width)}. Both must show the same frame: "
                "replace or remove this file."
            )
        return rgb, depth, (height, width)


def _sorted_entries(folder: Path, *, folders: bool) -> list[str]:
    """Sorted names of the visible folders, or of the .h5 files, in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and (entry.is_dir() if folders else entry.name.endswith((".h5", ".hdf5")))
        )
