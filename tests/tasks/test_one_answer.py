"""One picture, one answer: training, every call, every command and every export agree to 1e-5."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kora as package
from datamodules import ImageFolder
from datamodules.recipe import ImageRecipe
from kora.adapters import LoRA
from kora.backbone.vit import Backbone
from kora.export.command import RECORD, export
from kora.tasks import ClassificationTask
from kora.tasks.adapter_record import preprocessing
from kora.tasks.load import AdaptedModel
from tests.support.adapter_factory import CLASSES, write_folder
from tests.support.cli import REPOSITORY, kora
from tests.support.factory import kick
from tests.support.picture_factory import bad_files, scene, write_photos

pytestmark = pytest.mark.runs

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")
FITS = [pytest.param(fit, id=fit or "whole") for fit in ("crop", "stretch", None)]

#: The lines of export.json for one photo after another, where there is no kora.
ELSEWHERE: str = run_path(str(REPOSITORY / "docs/one_answer.py"))["ELSEWHERE"]
#: A process without kora, and a fork of it for each export.
_PLACE = """
import json, os, sys
import peft, timm, torch
code = sys.argv[1]
for line in sys.stdin:
    out, files, printed = json.loads(line)
    pid = os.fork()
    if not pid:
        try:
            sys.argv[1:] = [out, json.dumps(files)]
            with open(printed, "w") as sys.stdout:
                exec(code)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders; the 24 photos are the test images of one class."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, place in enumerate(("train/a", "train/b", "test/b")):
        (root / place).mkdir(parents=True)
        scene(number, (50, 60)).save(root / place / "one.png")
    write_photos(root / "test/a")
    return root


@pytest.fixture(scope="module", params=FITS)
def run(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> AdaptedModel:
    """The model of a run on these folders; without a fit, as after data of varying size."""
    folder = tmp_path_factory.mktemp("run")
    bare = Backbone("test_vit", weights="random", image_size=64)
    save_file(bare.model.state_dict(), folder / "vit.safetensors")
    backbone = Backbone("test_vit", weights=str(folder / "vit.safetensors"), image_size=64)
    task = ClassificationTask(backbone, LoRA(2), num_classes=len(CLASSES))
    task.build()
    recipe = ImageRecipe(request.param, (80, 56)) if request.param else ImageRecipe()
    stated = preprocessing(backbone, recipe)
    return package.load_adapter(
        write_folder(folder / "adapter", kick(task).eval(), preprocessing=stated)
    )


@pytest.fixture(scope="module")
def exported(run: AdaptedModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of an export of the run, written once."""
    made: dict[str, Path] = {}

    def folder(form: str) -> Path:
        if form not in made:
            out = tmp_path_factory.mktemp("export") / form
            written = export(run, form, out)
            assert written.difference is not None
            assert written.difference < 1e-5
            made[form] = out
        return made[form]

    return folder


@pytest.fixture(scope="module")
def expected(run: AdaptedModel, root: Path) -> list[list[float]]:
    """Probabilities of the 24 photos, as training and test read them."""
    paths = sorted((root / "test/a").iterdir())
    if run.recipe.fit is None:
        images = [torch.from_numpy(run.recipe(path)) for path in paths]
    else:
        data = ImageFolder(
            str(root), image_size=(80, 56), resize=run.recipe.fit, num_workers=0, val_images=0
        )
        data.setup("test")
        images = list(data.images("test", range(len(paths))))
    with torch.no_grad():
        return [run.task(image[None]).softmax(-1)[0].tolist() for image in images]


def photos(root: Path) -> list[Path]:
    return sorted((root / "test/a").iterdir())


def agree(found: list[list[float]], expected: list[list[float]]) -> None:
    difference = (torch.tensor(found) - torch.tensor(expected)).abs().max()
    assert difference < 1e-5
    assert torch.equal(torch.tensor(found).argmax(-1), torch.tensor(expected).argmax(-1))


def by_label(top: Any) -> list[float]:
    return [choice.probability for choice in sorted(top, key=lambda choice: choice.label)]


def test_the_photos_are_told_apart(expected: list[list[float]]) -> None:
    table = torch.tensor(expected)
    assert len(table) == 24
    assert (table.max(0).values - table.min(0).values).max() > 0.01, "they would agree anyhow"


def test_predict_and_the_model_itself_give_what_training_gives(
    run: AdaptedModel, root: Path, expected: list[list[float]]
) -> None:
    agree([by_label(p.top) for p in run.predict(root / "test/a", top_k=99)], expected)
    with torch.no_grad():
        natives = [torch.from_numpy(ImageRecipe()(path))[None] for path in photos(root)]
        agree([run(native).softmax(-1)[0].tolist() for native in natives], expected)


def test_kora_predict_gives_what_training_gives(
    run: AdaptedModel, root: Path, expected: list[list[float]], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = ("--top_k", "99", "--num_workers", "0", "--out", tmp_path / "out")
    done = kora(capfd, "predict", run.folder, "--images", root / "test/a", *options)
    assert done.code == 0, done.err
    found = []
    with (tmp_path / "out/predictions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ends = ["", *(f"_{k}" for k in range(2, len(CLASSES) + 1))]
            named = {row[f"class_name{end}"]: float(row[f"probability{end}"]) for end in ends}
            found.append([named[name] for name in CLASSES])
    agree(found, expected)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Where there is no kora."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with subprocess.Popen(
        [sys.executable, "-c", _PLACE, ELSEWHERE], cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.mark.parametrize(
    "form", ["timm", "peft", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow])]
)
def test_an_export_with_its_prepare_gives_what_training_gives_where_there_is_no_kora(
    form: str, exported: Callable[[str], Path], root: Path, expected: list[list[float]],
    place: subprocess.Popen[str], tmp_path: Path,
) -> None:  # fmt: skip
    bad = bad_files(tmp_path / "bad")
    files = [*photos(root), *(tmp_path / "bad" / name for name in bad)]
    found = elsewhere(place, exported(form), files, tmp_path / "printed")
    agree(found[: len(expected)], expected)
    for (name, reason), text in zip(bad.items(), found[len(expected) :], strict=True):
        assert text.startswith("UnreadableImageError: Cannot read the image ")
        assert name in text
        assert reason in text


def elsewhere(
    place: subprocess.Popen[str], out: Path, files: list[Path], printed: Path
) -> list[Any]:
    """What the lines of an export give for these files where there is no kora."""
    assert place.stdin is not None
    assert place.stdout is not None
    print(json.dumps([str(out), [*map(str, files)], str(printed)]), file=place.stdin)
    place.stdin.flush()
    assert int(place.stdout.readline()) == 0
    return [json.loads(line) for line in printed.read_text().splitlines()]


@needs_onnx
@pytest.mark.slow
def test_the_graph_fits_pixels_of_any_size_itself_as_pillow_does(
    exported: Callable[[str], Path], root: Path, expected: list[list[float]]
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported("onnx") / "model.onnx"))
    found = []
    for path in photos(root):
        native = ImageRecipe()(path)[None]
        (logits,) = session.run(None, {"images": native})
        found.append(torch.from_numpy(logits).softmax(-1)[0].tolist())
    agree(found, expected)


def test_export_json_states_one_order_of_steps(
    run: AdaptedModel, exported: Callable[[str], Path]
) -> None:
    stated = json.loads((exported("timm") / RECORD).read_text())["preprocessing"]
    assert stated["code"] == "prepare.py"
    assert stated["steps"] == preprocessing(run.backbone, run.recipe)["steps"]
    fits = [step["fit"] for step in stated["steps"] if step["step"] == "resize"]
    assert fits == [*([run.recipe.fit] if run.recipe.fit else []), "stretch"]
