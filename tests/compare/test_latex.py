"""The LaTeX table is one that LaTeX takes, with the rules of booktabs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kora.compare.command import compare
from kora.compare.comparison import to_latex
from kora.console.tables import latex_table
from tests.support.compare_factory import five_strategies
from tests.support.comparisons import run


def test_rows_and_rules_are_those_of_booktabs(tmp_path: Path) -> None:
    text = to_latex([compare(five_strategies(tmp_path))])
    rules = re.findall(r"\\(\w+rule)", text)
    assert rules == ["toprule", "midrule", "midrule", "bottomrule"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 5 + 2
    assert len({line.count("&") for line in rows}) == 1
    assert f"{{l{'r' * rows[0].count('&')}}}" in text
    assert r"68.33 \% & $\pm$ 2.87" in text


def test_signs_that_latex_would_read_are_written_out() -> None:
    text = to_latex([compare([run("a_b&c#1 {x} ~^\\ <$", 0, 0.5)])])
    assert r"a\_b\&c\#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} $<$\$" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_latex_takes_it(tmp_path: Path) -> None:
    table = to_latex([compare(five_strategies(tmp_path))])
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{table}"
    (tmp_path / "t.tex").write_text(page + "\\end{document}", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_line_break_ends_no_row_and_a_bracket_is_no_option_of_the_row_before() -> None:
    text = latex_table("a\n\nb", ["x"], [["a\n\nb"], ["[q, v]"]])
    assert "\n\n" not in text
    assert r"    a  b \\" in text
    assert r"    {}[q, v] \\" in text
