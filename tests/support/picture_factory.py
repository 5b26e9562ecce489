"""Pictures of every kind that a folder of photos holds, and files that look like pictures only."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["bad_files", "scene", "write_photos"]

_SIZES = ((40, 60), (64, 64), (90, 30), (33, 57), (200, 120), (48, 47), (121, 64), (20, 21))


def scene(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture (H, W) of soft colours, some noise, and a disc off its centre."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [np.sin(x / rng.uniform(5, 30) + y / rng.uniform(5, 30)) for _ in range(3)]
    pixels = 128 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 12, (*size, 3))
    disc = (y - size[0] * 0.3) ** 2 + (x - size[1] * 0.6) ** 2 < (min(size) / 4) ** 2
    pixels[disc] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path) -> list[Path]:
    """24 files of eight sizes: formats, modes, transparency, orientations, an animation."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []

    def save(image: Image.Image, suffix: str, **options: object) -> None:
        path = folder / f"{len(found):02}.{suffix}"
        image.save(path, **options)
        found.append(path)

    for number, size in enumerate(_SIZES):
        save(scene(number, size), "png")
        exif = Image.Exif()
        exif[0x0112] = number + 1  # all eight orientations
        save(scene(number + 20, size), "jpg", exif=exif, quality=90)
    save(scene(50, (70, 50)).convert("L"), "png")
    save(scene(51, (50, 70)).convert("CMYK"), "jpg")
    save(scene(52, (61, 45)).convert("P"), "png", transparency=3)
    save(scene(53, (44, 61)).convert("1"), "png")
    cut = scene(54, (52, 80))
    cut.putalpha(Image.linear_gradient("L").resize(cut.size))
    save(cut, "png")
    save(cut.convert("LA"), "png")
    save(cut, "webp", lossless=True)
    save(scene(55, (40, 64)), "gif", save_all=True, append_images=[scene(56, (40, 64))])
    return found


def bad_files(folder: Path) -> dict[str, str]:
    """Files that no model should answer to, by name, and what has to be said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    scene(0, (60, 60)).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(folder / "float.tif")
    os.mkfifo(folder / "pipe.png")
    # A program, which Pillow would have Ghostscript run.
    (folder / "program.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n%%EOF\n"
    )
    (folder / "vast.png").write_bytes(_vast())
    return {
        "cut.jpg": "truncated",
        "deep.png": "more than 8 bits a channel; convert it to 8-bit RGB",
        "empty.png": "the file is empty",
        "float.tif": "more than 8 bits a channel; convert it to 8-bit RGB",
        "pipe.png": "it is a pipe, a socket or a device, and no file",
        "program.png": "it is no image, or of a format that Pillow does not read",
        "text.jpg": "it is no image, or of a format that Pillow does not read",
        "vast.png": "it has more than 89,478,485 pixels; scale it down",
    }


def _vast() -> bytes:
    """A file of 70 bytes that says it is a picture of 13,000 x 13,000 pixels."""
    content = io.BytesIO()
    Image.new("1", (1, 1)).save(content, "PNG")
    small = content.getvalue()
    header = b"IHDR" + struct.pack(">II", 13_000, 13_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
