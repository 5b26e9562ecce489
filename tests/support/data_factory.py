"""Tiny data sets written in the real on-disk formats, from seeded numbers.

Every picture carries its class: the class decides a base colour, the seed adds noise, so a model
can learn from a handful of images.

Shapes: n images, H height, W width
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "class_image",
    "jpeg_bytes",
    "write_cifar_archive",
    "write_class_folders",
    "write_tiny_imagenet_zip",
]

WNIDS = tuple(f"n{1440764 + 11 * i:08d}" for i in range(200))


def class_image(label: int, number: int, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 image (H, W, 3) of a class: its colour and stripes, with noise seeded by `number`."""
    rng = np.random.default_rng([label, number])
    colour = np.random.default_rng(label).integers(40, 216, 3)
    stripes = 30 * np.sin(np.arange(size[1]) * (label % 7 + 1) / 3)
    noise = rng.normal(0, 12, (*size, 3))
    pixels = colour[None, None] + stripes[None, :, None] + noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


def jpeg_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG of an image (H, W, 3) or a greyscale image (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_cifar_archive(
    path: Path,
    *,
    variant: int = 10,
    train_per_class: int = 10,
    test_per_class: int = 2,
    extra: dict[str, bytes] | None = None,
    labels: Sequence[int] | None = None,
) -> Path:
    """The official layout of cifar-10-python.tar.gz or cifar-100-python.tar.gz at `path`.

    Pickled as Python 2 did it: byte strings, and NumPy's module under its old name.

    Args:
        path: the archive to write.
        variant: 10 or 100.
        train_per_class: training images a class; for CIFAR-10 they go to five batches.
        test_per_class: test images a class.
        extra: further members, by name.
        labels: replaces the training labels (for damaged data).
    """
    train = _cifar_part(variant, train_per_class, first=0)
    test = _cifar_part(variant, test_per_class, first=10_000)
    if labels is not None:
        train = (train[0], list(labels))
    names = [f"class_{i:03d}".encode() for i in range(variant)]
    members: dict[str, bytes] = {}
    if variant == 10:
        pieces = np.array_split(np.arange(len(train[1])), 5)
        parts = [(f"data_batch_{i + 1}", piece) for i, piece in enumerate(pieces)]
        for name, piece in parts:
            members[f"cifar-10-batches-py/{name}"] = python2_pickle(
                {
                    b"batch_label": name.encode(),
                    b"labels": [train[1][i] for i in piece],
                    b"data": train[0][piece],
                    b"filenames": [f"{i}.png".encode() for i in piece],
                }
            )
        members["cifar-10-batches-py/test_batch"] = python2_pickle(
            {b"batch_label": b"testing batch 1 of 1", b"labels": test[1], b"data": test[0]}
        )
        members["cifar-10-batches-py/batches.meta"] = python2_pickle(
            {b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072}
        )
    else:
        for name, (data, fine) in (("train", train), ("test", test)):
            members[f"cifar-100-python/{name}"] = python2_pickle(
                {b"fine_labels": fine, b"coarse_labels": [i // 5 for i in fine], b"data": data}
            )
        members["cifar-100-python/meta"] = python2_pickle(
            {b"fine_label_names": names, b"coarse_label_names": names[:20]}
        )
    return write_tar(path, {**members, **(extra or {})})


def write_tiny_imagenet_zip(
    path: Path,
    *,
    classes: int = 4,
    train_per_class: int = 10,
    val_per_class: int = 3,
    size: tuple[int, int] = (64, 64),
    extra: dict[str, bytes] | None = None,
) -> Path:
    """The official layout of tiny-imagenet-200.zip at `path`, with the first `classes` wnids.

    `wnids.txt` lists them in an order that is not the sorted one, as the real file does; the first
    training image of each class is greyscale; `val/images` is flat.
    """
    wnids = sorted(WNIDS[:classes], key=lambda wnid: wnid[::-1], reverse=True)
    top = "tiny-imagenet-200"
    words = "".join(f"{wnid}\tthing {i}, object {i}\n" for i, wnid in enumerate(wnids))
    members = {
        f"{top}/wnids.txt": "".join(f"{wnid}\n" for wnid in wnids).encode(),
        f"{top}/words.txt": (words + "n00001740\tentity\n").encode(),
    }
    annotations, number = [], 0
    for label, wnid in enumerate(wnids):
        for i in range(train_per_class):
            pixels = class_image(label, i, size=size)
            members[f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg_bytes(
                pixels[..., 0] if i == 0 else pixels
            )
        boxes = "".join(f"{wnid}_{i}.JPEG\t0\t0\t63\t63\n" for i in range(train_per_class))
        members[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = boxes.encode()
    for i in range(val_per_class):
        for label, wnid in enumerate(wnids):
            name = f"val_{number}.JPEG"
            members[f"{top}/val/images/{name}"] = jpeg_bytes(
                class_image(label, 10_000 + i, size=size)
            )
            annotations.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
            number += 1
    members[f"{top}/val/val_annotations.txt"] = "".join(annotations).encode()
    return write_zip(path, {**members, **(extra or {})})


def write_class_folders(
    root: Path,
    *,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    train_per_class: int = 8,
    test_per_class: int = 3,
    sizes: Iterable[tuple[int, int]] = ((40, 60), (48, 48), (90, 30)),
) -> Path:
    """`root/train/<class>/*` and `root/test/<class>/*`: JPEG and PNG images of mixed sizes."""
    sizes = tuple(sizes)
    for part, count, first in (("train", train_per_class, 0), ("test", test_per_class, 10_000)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(class_image(label, first + i, size=sizes[i % len(sizes)]))
                image.save(folder / f"{i:04d}.{'png' if i % 4 == 3 else 'jpg'}")
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar archive, compressed as its name says."""
    mode: Any = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    """A zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def python2_pickle(value: Any) -> bytes:
    """Pickle `value` as Python 2 with old NumPy wrote it: bytes are its plain strings."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class _Python2Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode("ascii"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str


def _cifar_part(variant: int, per_class: int, *, first: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Flat images (n, 3072), channels first, and labels, interleaved over the classes."""
    labels = [label for _ in range(per_class) for label in range(variant)]
    images = [
        class_image(label, first + i // variant, size=(32, 32)).transpose(2, 0, 1).ravel()
        for i, label in enumerate(labels)
    ]
    return np.stack(images), labels
