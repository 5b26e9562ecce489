"""Every notebook runs from start to end, and what it shows in the repository is what it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.cli import REPOSITORY
from tests.support.kept import kept

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
#: What the cells of each must have printed; patterns.
CLAIMS = {
    "01_from_pictures_to_predictions": (
        r"tells the (?:12|3) classes apart in \d+\.\d % of \d+ test pictures",
        r"LinearProbe +\d+\.\d% in validation\nMultiLayerProbe +\d+\.\d% in validation\n",
        r"KoRA-refined +\d+\.\d% in validation",
        r"test/accuracy \d+\.\d%",
    ),
    "02_compare_adapters": (
        r"KoRA-side +3 +\d\d\.\d\d % +± \d",  # mean and interval over seeds
        r"KoRA +[+−]\d\.\d\d ± .*\[[+−]\d\.\d\d, [+−]\d\.\d\d\] .*\d\.\d{3}",
        r"points on 3 seeds; bootstrap .* on 1,200 images; p .*, Holm ",
        r"LoRA .* p 7e-05, .*\n +zero is outside of the t-interval: False",  # the text says so
        r"\| LinearProbe \| 3 \|",  # against another reference, as Markdown
        r"compare\.html",
        r"different orders of three seeds: 3",
        r"One seed only: .* There is no interval",
        r"protocol\.style: 'paint' in .*; 'night' in .* and 14 more",
        r"left out, unlike the other 15 runs",
        r"These runs cannot be compared",
    ),
    "03_what_kora_composes": (
        r"KoRA: (?:1\d|2[0-3]) of 24 nodes contribute less than a millionth",
        r"KoRA-side: the gradient at step 1 is 0 at every node: True",
        r"last: \d\.\de-\d\d at the last node, \d\.\de-[23]\d at the first",
        r"KoRA: 0 of 24 nodes have no singular value",
        r"KoRA-side: (?:1\d|2[0-3]) of 24 nodes have no singular value",
        r"KoRA-side: exactly the frozen backbone's: embedding, block 0, .*, block 5\n",
        r"\nLoRA: exactly the frozen backbone's: embedding\n",
        r"KoRA-side minus frozen backbone: (?:0\.0e\+00|\d\.\de-1\d) at most",
    ),
    "04_why_the_chain_forgets": (
        r"Sequential, d_comp 4: a stage divides the gradient by 1\d\.\d\d",
        r"Sequential, d_comp 64: a stage divides the gradient by (?:9|1\d)\.\d\d",
        r"ResidualSequential, d_comp 4: a stage divides the gradient by 1\.00",
        r"KoRA-side: at the last step the first node gets \de-2\d of the last",
        r"KoRA-refined-pooled: at the last step the first node gets 1e\+00 of the last",
        r"KoRA-side: (?:1\d|2[0-3]) of 24 nodes contribute less than a millionth",
        r"KoRA-refined-pooled: 0 of 24 nodes contribute less than a millionth",
        r"(KoRA-side +\d +\d\d\.\d % +0\.0 %.*\n){3}",  # silence changes no prediction
        r"KoRA-refined-pooled +3 +\d\d\.\d\d % +± \d",
    ),
}  # fmt: skip


#: What the tests show fewer images to than a reader is shown.
FEWER = {
    "01_from_pictures_to_predictions": (
        ("range(240)", "range(0, 240, 4)"),  # three classes
        ("train_images=600, test_images=240, val_images=60",
         "train_images=120, test_images=48, val_images=24"),
    ),
    "02_compare_adapters": (
        ("--trainer.accelerator cpu",
         "--trainer.accelerator cpu --model.feature_cache off --trainer.limit_train_batches 3"
         " --data.val_images 24 --data.test_images 24"),
    ),
    "03_what_kora_composes": (
        ("--out {NEW}/{name}", "--out {NEW}/{name} --images 32"),
        ("--images 1000 --batch_size 50", "--images 80 --batch_size 20"),
    ),
    "04_why_the_chain_forgets": (
        ("--out {NEW}/{name}", "--out {NEW}/{name} --images 32"),
        ("test_images=1_200", "test_images=24"),
        ("range(600)", "range(24)"),
        ("[:600]", ""),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This Python, with all that a notebook imports."""
    tools = tmp_path_factory.mktemp("kernel") / "tools"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("kora.adaptation.search._MOST", 8)  # epochs of a fit of kora.adapt
        monkeypatch.setattr("kora.adaptation.call.USUAL_MINUTES", 0)
        with kept(REPOSITORY, tools):
            yield tools / "python"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def run(notebook: Any, folder: Path, python: Path) -> str:
    """Run a notebook in a folder; all that its cells printed."""

    class Kernel(AsyncKernelManager):
        """Starts this Python, whatever kernels the machine has."""

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(
                argv=argv, display_name="this", language="python", interrupt_mode="message"
            )

    client = NotebookClient(
        notebook, timeout=300, kernel_manager_class=Kernel,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()
    return printed_by(notebook)


def printed_by(notebook: Any) -> str:
    """All text that its cells gave."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    # rich shows tables of its own in a notebook.
    return "".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs)


def files(folder: Path) -> set[Path]:
    """What git would call new in a folder of the repository, or in the saved runs."""
    saved = (REPOSITORY / "notebooks/runs").rglob("*")
    return {path for path in (*folder.iterdir(), *saved) if path.name != "__pycache__"}


def test_every_notebook_has_claims() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(CLAIMS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_with_quiet_outputs_that_hold_its_claims(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "in one go"
    shown = printed_by(notebook)
    for claim in CLAIMS[path.stem]:
        assert re.search(claim, shown), claim
    assert not re.search(r"[\x00-\x08\x0b-\x1f]|Warning|Traceback", shown)
    assert len(shown.splitlines()) < 400
    assert not re.search(r"(?<![\w.])/(?:home|Users|root|tmp|mnt|work)\b", path.read_text("utf-8"))
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_in_its_folder_and_leaves_nothing_there(path: Path, python: Path) -> None:
    folder, notebook = path.parent, read(path)
    for many, few in FEWER.get(path.stem, ()):
        (cell,) = (cell for cell in notebook.cells if many in cell.source)
        cell.source = cell.source.replace(many, few)
    before = files(folder) | files(REPOSITORY)
    printed = run(notebook, folder, python)
    assert files(folder) | files(REPOSITORY) == before
    for claim in CLAIMS[path.stem]:
        assert re.search(claim, printed), f"{claim}\n{printed}"
