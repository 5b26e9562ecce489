"""200 photos of mixed sizes, orientations and modes through every way of prediction of one run.

    python docs/one_answer.py --archive caltech101-small.zip --weights FILE --out runs/answers

Trains LoRA on ten classes of an archive of class folders (`train/CLASS`, `test/CLASS`), stores 60
of the 200 photos turned, grey, in CMYK, with a palette or transparent, and prints for each way how
many photos get the class that the run's own test gives, and by how much probabilities differ. The
exports run in a process in which kora cannot be imported.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import kora
from datamodules import ImageFolder
from datamodules.recipe import ImageRecipe

__all__ = ["main"]

CLASSES = (
    "airplanes", "bonsai", "chandelier", "elephant", "ferry", "flamingo", "laptop", "minaret",
    "pizza", "umbrella",
)  # fmt: skip
MODEL = "vit_small_patch14_dinov2"

#: The lines of export.json for one photo after another, where there is no kora: a line of
#: probabilities each, or the error.
ELSEWHERE = """
import json, sys
for name in ("kora", "datamodules"):
    sys.modules[name] = None
import numpy, torch
record = json.load(open(f"{sys.argv[1]}/export.json"))
names = {}
exec("\\n".join(record["load"]).replace("FOLDER", sys.argv[1]), names)
for photo in json.loads(sys.argv[2]):
    try:
        with torch.no_grad():
            exec(compile("\\n".join(record["use"]).replace("FOLDER", sys.argv[1])
                         .replace("photo.jpg", photo), "use", "exec"), names)
        logits = torch.as_tensor(names.get("outputs", names.get("logits")))
        print(json.dumps(logits.float().softmax(-1)[0].tolist()))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def write_photos(archive: Path, root: Path) -> None:
    """10 training and 20 test photos a class; of the 200, every tenth in each of six forms."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(n for n in file.namelist() if n.split("/")[-2] in CLASSES and n[-1] != "/")
        for number, name in enumerate(names):
            part, folder = name.split("/")[-3:-1]
            place = root / ("test" if part == "train" else "train") / folder
            place.mkdir(parents=True, exist_ok=True)
            with file.open(name) as opened:
                image = Image.open(opened).convert("RGB")
            if number % 7 == 0:
                image = image.resize((image.width * 4, image.height * 4))
            save(image, place / Path(name).stem, form=number % 20)


def save(image: Image.Image, path: Path, *, form: int) -> None:
    if form in (0, 1):  # stored on its side, as a phone does
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.save(path.with_suffix(".jpg"), exif=exif, quality=95)
    elif form == 2:
        image.convert("L").save(path.with_suffix(".jpg"), quality=95)
    elif form == 3:
        image.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
    elif form == 4:
        image.convert("P").save(path.with_suffix(".gif"), transparency=0)
    elif form == 5:
        image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda v: 255 - v // 2))
        image.save(path.with_suffix(".png"))
    else:
        image.save(path.with_suffix(".jpg"), quality=95)


def command(*args: object) -> None:
    subprocess.run([sys.executable, "-m", "kora", *map(str, args)], check=True)


def by_label(prediction: Any) -> list[float]:
    return [c.probability for c in sorted(prediction.top, key=lambda c: c.label)]


def predicted(run: Path, files: list[Path], out: Path) -> list[list[float]]:
    command("predict", run, "--images", files[0].parents[1], "--out", out, "--top_k", len(CLASSES))
    found = []
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ends = ["", *(f"_{k}" for k in range(2, len(CLASSES) + 1))]
            named = {row[f"class_name{end}"]: float(row[f"probability{end}"]) for end in ends}
            found.append([named[name] for name in CLASSES])
    return found


def exported(folder: Path, files: list[Path]) -> list[list[float]]:
    photos = json.dumps([str(file.absolute()) for file in files])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder.absolute()), photos],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [line for line in found if isinstance(line, str)]
    assert not errors, errors[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fit", choices=("crop", "stretch"), default="crop")
    own = parser.parse_args()
    root, runs = own.out / "photos", own.out / own.fit
    if not root.is_dir():
        write_photos(own.archive, root)
    command(
        "fit", "--config", "configs/image_folder.yaml", "--config", "configs/adapters/lora.yaml",
        "--runs_dir", runs, "--data.root", root,
        "--data.image_size", 84, "--data.resize", own.fit, "--data.num_workers", 0,
        "--data.augment", "none", "--data.batch_size", 20, "--model.backbone.name", MODEL,
        "--model.backbone.weights", own.weights.absolute(), "--model.backbone.image_size", 70,
        "--trainer.max_epochs", 8, "--trainer.accelerator", "cpu", "--seed_everything", 0,
    )  # fmt: skip
    run = sorted(runs.glob("*/*/seed0/version_*"))[-1]
    model = kora.load_adapter(run)
    data = ImageFolder(str(root), image_size=84, resize=own.fit, num_workers=0)
    data.setup("test")
    files, labels = data._part_paths("test"), torch.from_numpy(data.labels("test"))
    with torch.no_grad():
        batches = data.images("test", range(len(files))).split(50)
        truth = torch.cat([model.task(batch).softmax(-1) for batch in batches])
    ways: dict[str, Callable[[], Any]] = {
        "`kora predict`": lambda: predicted(run, files, own.out / own.fit / "predicted"),
        "`predict(path)`": lambda: [by_label(p) for p in model.predict(files, top_k=10)],
        "`model(pixels)`": lambda: [model(pixels(f)).softmax(-1)[0].tolist() for f in files],
    }
    rows = []
    for form in ("timm", "peft", "onnx"):
        command("export", run, "--format", form, "--out", own.out / own.fit / form)
        ways[f"`--format {form}`, `prepare.py`"] = lambda form=form: exported(
            own.out / own.fit / form, files
        )
    ways["`--format onnx`, whole pixels"] = lambda: whole_pixels(own.out / own.fit / "onnx", files)
    for name, way in ways.items():
        with torch.no_grad():
            found = torch.tensor(way())
        same = int((found.argmax(-1) == truth.argmax(-1)).sum())
        difference = (found - truth).abs().max().item()
        rows.append((name, same, difference))
    accuracy = (truth.argmax(-1) == labels).float().mean().item()
    print(f"\n{len(files)} photos, {own.fit}; test accuracy {accuracy:.1%}\n")
    print("| way | same class | largest difference of a probability |\n| --- | --: | --: |")
    for name, same, difference in rows:
        print(f"| {name} | {same} of {len(files)} | {difference:.1e} |")


def pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(ImageRecipe()(file))[None]


def whole_pixels(folder: Path, files: list[Path]) -> list[list[float]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    outputs = [session.run(None, {"images": pixels(file).numpy()})[0] for file in files]
    return [torch.from_numpy(logits).softmax(-1)[0].tolist() for logits in outputs]


if __name__ == "__main__":
    main()
