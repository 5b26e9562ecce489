"""How fast images reach the device: CIFAR-10, Tiny ImageNet and class folders, beside PIL.

Writes synthetic data in the real formats to a temporary folder. In every round each contender, on
one core and in turn, sets its data up and then delivers batches through its real loader for so many
seconds; the ratio to the usual path is taken within a round. Caches are made before the first one.
The usual path is that of most code for these data sets: a map-style data set that opens each image
with PIL and resizes it to the size of the network; default collation. It gives uint8 here, as the
data modules do; normalised float32, as is usual too, costs it more. As the data modules leave the
resizing to the device, PIL without it is measured too.

    python benchmarks/image_loading.py [--images 10000] [--photos 300] [--batch 64] [--workers 0]
        [--repeats 5] [--seconds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import machine, table, write
from datamodules import CIFAR, ImageDataModule, ImageFolder, TinyImageNet
from tests.support.data_factory import (
    write_cifar_archive,
    write_class_folders,
    write_tiny_imagenet_zip,
)

SIZE = 224  # of the network
USUAL = "PIL per sample, resized to 224"
PLAIN = "PIL per sample, native size"
#: What is measured in every round, and how it is written. The cpu time is without loader processes.
COLUMNS = {
    "images/s": ",.0f",
    "images/cpu s": ",.0f",
    "times the usual path": ",.1f",
    "first epoch, images/s": ",.0f",
    "ready, s": ".2f",
}
Make = Callable[[], DataLoader[Any]]


class PerSample(Dataset[tuple[Tensor, int]]):
    """One image a call, as torchvision's data sets and their usual transforms do it.

    Args:
        images: paths of files, or arrays (H, W, 3).
        labels: of the images.
        resize: to `SIZE`; else as it is.
    """

    def __init__(self, images: Sequence[Any], labels: Sequence[int], *, resize: bool) -> None:
        self.images, self.labels, self.resize = images, labels, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        source = self.images[row]
        if isinstance(source, Path):
            with source.open("rb") as file:
                image = Image.open(file).convert("RGB")
        else:
            image = Image.fromarray(source)
        if self.resize:
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels, self.labels[row]


def per_sample(data: ImageDataModule, images: Sequence[Any], *, resize: bool) -> Make:
    """A plain loader over the training images."""
    data.setup_splits()
    labels = data.labels("train").tolist()
    dataset = PerSample(images, labels, resize=resize)
    return lambda: DataLoader(dataset, data.batch_size, shuffle=True, num_workers=data.num_workers)


def module(make: Callable[..., ImageDataModule], **options: Any) -> Make:
    """The data module's own loader, of a module that has just been made."""

    def loader() -> DataLoader[Any]:
        data = make(**options)
        data.setup("fit")
        return data.train_dataloader()

    return loader


def contenders(root: Path, own: argparse.Namespace) -> Iterator[tuple[str, dict[str, Make]]]:
    """Loaders by name, of one data set after the other."""
    common = {"batch_size": own.batch, "num_workers": own.workers, "val_fraction": 0}

    def cifar() -> CIFAR:
        return CIFAR(str(root), variant=10, archive=str(root / "c.tar.gz"), **common)

    write_cifar_archive(root / "c.tar.gz", train_per_class=own.images // 10, test_per_class=1)
    cifar().prepare_data()
    arrays = cifar().read("train", np.arange(own.images // 10 * 10))["image"]
    rows = list(arrays.permute(0, 2, 3, 1).contiguous().numpy())
    yield (
        "CIFAR-10",
        {
            USUAL: per_sample(cifar(), rows, resize=True),
            PLAIN: per_sample(cifar(), rows, resize=False),
            "CIFAR": module(cifar),
        },
    )

    def tiny(**options: Any) -> TinyImageNet:
        return TinyImageNet(str(root), archive=str(root / "t.zip"), **common, **options)

    each = own.images // 200
    write_tiny_imagenet_zip(root / "t.zip", classes=200, train_per_class=each, val_per_class=1)
    tiny().prepare_data()
    tiny().setup("fit")
    paths = [path for folder in sorted((tiny().folder / "train").iterdir())
             for path in sorted((folder / "images").iterdir())]  # fmt: skip
    yield (
        "Tiny ImageNet",
        {
            USUAL: per_sample(tiny(), paths, resize=True),
            PLAIN: per_sample(tiny(), paths, resize=False),
            "TinyImageNet, cache: false": module(tiny, cache=False),
            "TinyImageNet": module(tiny),
        },
    )

    def folder(**options: Any) -> ImageFolder:
        return ImageFolder(str(root / "photos"), image_size=SIZE, **common, **options)

    write_class_folders(
        root / "photos",
        train_per_class=own.photos // 3,
        test_per_class=1,
        sizes=((375, 500),),
    )
    folder(cache=True).setup("fit")
    paths = sorted(path for path in (root / "photos" / "train").rglob("*") if path.is_file())
    yield (
        "photographs of 375 x 500",
        {
            USUAL: per_sample(folder(), paths, resize=True),
            "ImageFolder": module(folder),
            "ImageFolder, cache: true": module(folder, cache=True),
        },
    )


def delivered(
    loader: DataLoader[Any], seconds: float, *, epochs: float = float("inf")
) -> tuple[float, float]:
    """Images a second, and a second of this process alone, over so many epochs or seconds."""
    images, epoch = 0, 0
    begun, cpu = time.perf_counter(), time.process_time()
    while epoch < epochs and time.perf_counter() - begun < seconds:
        for batch in loader:
            images += len(batch["image"] if isinstance(batch, dict) else batch[0])
            if time.perf_counter() - begun > seconds:
                break
        epoch += 1
    return images / (time.perf_counter() - begun), images / (time.process_time() - cpu)


def measured(makes: dict[str, Make], *, repeats: int, seconds: float) -> dict[str, Any]:
    """Seconds until ready, images/s of the first epoch and after it, of every round by name."""
    found: dict[str, Any] = {name: {column: [] for column in COLUMNS} for name in makes}
    for repeat in range(repeats):
        for name, make in makes.items():
            begun, one = time.perf_counter(), found[name]
            loader = make()
            one["ready, s"].append(time.perf_counter() - begun)
            one["first epoch, images/s"].append(delivered(loader, seconds, epochs=1)[0])
            wall, cpu = delivered(loader, seconds)
            one["images/s"].append(wall)
            one["images/cpu s"].append(cpu)
            one["times the usual path"].append(wall / found[USUAL]["images/s"][-1])
        print(f"round {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    return found


def rendered(found: dict[str, dict[str, Any]]) -> str:
    """Rows in Markdown."""
    rows = []
    for data, paths in found.items():
        for name, one in paths.items():
            cells = []
            for column, form in COLUMNS.items():
                low, middle, high = (
                    format(number(one[column]), form) for number in (min, statistics.median, max)
                )
                cells.append(f"{middle} ({low} to {high})")
            if name in (USUAL, PLAIN):
                cells[-1] = ""  # its files are listed beforehand
            rows.append([data, name, *cells])
    return table(["data", "path", *COLUMNS], rows)


def one_core() -> str:
    """Keep this process and its loader processes on one core, where the system can."""
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return "one thread, any core"
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return "one core"


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Images a second of the data modules.")
    parser.add_argument("--images", type=int, default=10_000, help="of CIFAR-10 and Tiny ImageNet")
    parser.add_argument("--photos", type=int, default=300, help="in class folders")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    own = parser.parse_args(args)
    least = {"images": 200, "photos": 6, "batch": 1, "workers": 0, "repeats": 1}
    for name, number in least.items():
        if getattr(own, name) < number:
            parser.error(f"--{name} {getattr(own, name)}: expected {number} or more.")
    where, found = one_core(), {}
    with tempfile.TemporaryDirectory() as folder:
        print("writing data ...", file=sys.stderr, flush=True)
        for data, makes in contenders(Path(folder), own):
            print(data, file=sys.stderr, flush=True)
            found[data] = measured(makes, repeats=own.repeats, seconds=own.seconds)
    print(
        f"\n{own.images:,} images ({own.photos:,} photographs), batches of {own.batch}, "
        f"{own.workers} loader processes, {where}; medians of {own.repeats} rounds "
        "(lowest to highest)\n"
    )
    print(rendered(found))
    said = f"{machine()}, Pillow {PIL.__version__}, NumPy {np.__version__}"
    print(f"\n{said}")
    write(own, "image_loading", {"machine": said, "data": found})


if __name__ == "__main__":
    main()
