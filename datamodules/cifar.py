"""CIFAR-10 and CIFAR-100 from their official Python archives.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html

Shapes: N images of a part; a row of 3072 bytes is (3, 32, 32)
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.base import ImageDataModule, Part
from datamodules.download import expand_path, obtain_folder
from datamodules.splits import IntArray

__all__ = ["CIFAR"]


class _Layout(NamedTuple):
    url: str
    md5: str
    folder: str
    files: dict[Part, tuple[str, ...]]
    label_key: bytes
    meta: str
    names_key: bytes


_LAYOUTS = {
    10: _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        files={
            "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test": ("test_batch",),
        },
        label_key=b"labels",
        meta="batches.meta",
        names_key=b"label_names",
    ),
    100: _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        label_key=b"fine_labels",
        meta="meta",
        names_key=b"fine_label_names",
    ),
}


class CIFAR(ImageDataModule):
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images of 32 x 32.

    There is no option `cache`: the files hold arrays, so all images are ready after about a second,
    and a memory map would not be read faster (`benchmarks/README.md`).

    Args:
        root: folder that holds, or will hold, the extracted folder.
        variant: 10 or 100 (fine labels).
        archive: a local archive to extract instead of downloading, with any checksum.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range.
    """

    image_size = (32, 32)
    dataset_name: ClassVar[str] = "CIFAR"

    def __init__(
        self,
        root: str = "data",
        *,
        variant: Literal[10, 100],
        archive: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if variant not in _LAYOUTS:
            raise ValueError(f"data.variant is {variant}; CIFAR has variants 10 and 100.")
        self.layout = _LAYOUTS[variant]
        self.num_classes = variant
        self.root = expand_path(root, key="data.root")
        self.archive = None if archive is None else expand_path(archive, key="data.archive")

    def prepare_data(self) -> None:
        """Download and extract, unless the extracted folder is there."""
        layout = self.layout
        obtain_folder(
            self.folder,
            archive=self.archive,
            inside=layout.folder,
            url=layout.url,
            md5=layout.md5,
        )

    @property
    def folder(self) -> Path:
        """The extracted folder."""
        return self.root / self.layout.folder

    def read_labels(self, part: Part) -> IntArray:
        meta = self.folder / self.layout.meta
        names = _unpickle(meta).get(self.layout.names_key, [])
        try:
            self.class_names = [name.decode() for name in names]
        except (AttributeError, TypeError, UnicodeDecodeError) as error:
            raise RuntimeError(
                f"{meta} is damaged: its names of classes are not text in UTF-8 ({error}). Delete "
                f"{self.folder} and run `kora data prepare` again."
            ) from error
        if len(self.class_names) != self.num_classes:
            raise RuntimeError(
                f"{meta} names {len(self.class_names)} classes, expected {self.num_classes}. "
                f"Delete {self.folder} and run `kora data prepare` again."
            )
        return np.concatenate([labels for _, labels in self._batches(part)])

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        rows = np.concatenate([pixels for pixels, _ in self._batches(part)])[positions]
        return {"image": torch.from_numpy(rows).view(-1, 3, 32, 32)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for name in self.layout.files[part]:
                digest.update(_read_bytes(self.folder / name))
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        return {"variant": self.num_classes}

    def _batches(self, part: Part) -> list[tuple[NDArray[np.uint8], IntArray]]:
        """Pixels (N, 3072) and labels (N,) of every file of a part."""
        batches = []
        for name in self.layout.files[part]:
            path = self.folder / name
            content = _unpickle(path)
            pixels = content.get(b"data")
            labels = self._labels(path, content.get(self.layout.label_key, []))
            if (
                not isinstance(pixels, np.ndarray)
                or pixels.dtype != np.uint8
                or pixels.shape != (len(labels), 3072)
            ):
                raise RuntimeError(
                    f"{path} does not hold CIFAR-{self.num_classes} images: expected bytes of "
                    f"shape ({len(labels)}, 3072) for its {len(labels)} labels, found "
                    f"{getattr(pixels, 'shape', type(pixels).__name__)}. Delete {self.folder} and "
                    "run `kora data prepare` again."
                )
            batches.append((pixels, labels))
        return batches

    def _labels(self, path: Path, labels: Any) -> IntArray:
        """The labels of a file; each must be a class, as -1 would silently leave an image out.

        Raises:
            RuntimeError: One is not a class.
        """
        rows = enumerate(labels if isinstance(labels, list | np.ndarray) else [labels])
        for row, label in rows:
            if not isinstance(label, int | np.integer) or not 0 <= label < self.num_classes:
                raise RuntimeError(
                    f"{path}: image {row} has label {label!r}, but labels must lie in "
                    f"0..{self.num_classes - 1}. The file is damaged: delete {self.folder} and "
                    "run `kora data prepare` again."
                )
        return np.asarray(labels, dtype=np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers; refuses to import anything else."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # NumPy moved this function in 2.0; its own pickles name the new place.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        # How Python 3 writes bytes in protocol 2.
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}") from None


def _unpickle(path: Path) -> dict[bytes, Any]:
    content = _read_bytes(path)
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise RuntimeError(
            f"{path} is not a CIFAR file, or is damaged ({error}). Delete the folder "
            f"{path.parent} and run `kora data prepare` again."
        ) from error
    if not isinstance(value, dict):
        raise RuntimeError(f"{path} is not a CIFAR file: it holds a {type(value).__name__}.")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"CIFAR file {path} is missing. Run `kora data prepare --config ...` to get the data; "
            f"if the folder {path.parent} is incomplete, delete it first."
        ) from None
