"""Run the notebooks and keep what they show, made small and without paths of this machine.

python notebooks/execute.py [NOTEBOOK ...]
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from kora.runs.durable import write_text

HERE = Path(__file__).parent
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp\w+")


def execute(path: Path) -> None:
    """Run one, and write it back whole."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined([_clean(output) for output in cell.outputs])
    write_text(path, nbformat.writes(notebook) + "\n")


def _clean(output: Any) -> Any:
    if "text" in output:
        output.text = _plain(output.text)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = _plain(value)
        elif kind == "image/png":
            output.data[kind] = _smaller(value)
    return output


def _smaller(png: str) -> str:
    """A picture of 256 colours: a third of the bytes."""
    found = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256).save(found, "PNG", optimize=True)
    return base64.b64encode(found.getvalue()).decode() + "\n"


def _plain(text: str) -> str:
    text = _TEMPORARY.sub("TEMPORARY", _COLOUR.sub("", text)).replace(str(Path.home()), "~")
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _joined(outputs: list[Any]) -> list[Any]:
    """Text that follows text is one output: when it came is chance."""
    found: list[Any] = []
    for one in outputs:
        last = found[-1] if found else None
        if last is not None and one.output_type == last.output_type == "stream":
            last.text += one.text
        else:
            found.append(one)
    return found


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(HERE.glob("*.ipynb")):
        execute(Path(name))
