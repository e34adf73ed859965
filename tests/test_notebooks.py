"""Every notebook runs from top to bottom, and what it keeps is what a run prints and draws.

Seen to fail: a cell that raises; an assert that does not hold; a warning on stderr; code that prints less than before;
of what is kept, a text or a picture deleted, a printed number or an execution count changed, a path printed, a time in
the metadata; a question mark or the answer gone; a class of more than 40 lines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

for package in ("nbclient", "ipykernel", "ipywidgets", "matplotlib", "scipy", "diffusers"):
    pytest.importorskip(package, reason=f'{package} is missing, which notebooks need: pip install "sld[notebooks]"')

import nbformat  # noqa: E402 (here and below: behind the question whether it is there)
from nbformat import NotebookNode  # noqa: E402

from notebooks.execute import FOLDER, MEASURED, NOTEBOOKS, execute, kernels  # noqa: E402
from sld.embedded import embedded_checkpoint  # noqa: E402

LONGEST = 40  # lines of a function or class
MOST = 2_800_000  # bytes of the whole folder

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: NotebookNode) -> list[tuple[str, str]]:
    """What a cell prints or shows as text, each with its kind."""
    printed = [(output.name, output.text) for output in cell.outputs if output.output_type == "stream"]
    shown = [output.data for output in cell.outputs if "data" in output]
    return printed + [(kind, text) for data in shown for kind, text in sorted(data.items()) if kind.startswith("text/")]


def pictures(cell: NotebookNode) -> list[str]:
    """The kinds of the pictures that a cell draws."""
    shown = [output.data for output in cell.outputs if "data" in output]
    return [kind for data in shown for kind in data if kind.startswith("image/") and data[kind]]


def stderr(notebook: NotebookNode) -> list[str]:
    return [text for cell in code(notebook) for kind, text in texts(cell) if kind == "stderr"]


@every_notebook
def test_a_run_gives_the_outputs_that_are_kept(path):
    kept = nbformat.read(path, as_version=4)
    same_rounding = kept.metadata.sld.kernels == kernels()

    fresh = execute(path)

    assert stderr(fresh) == []
    for number, (before, now) in enumerate(zip(code(kept), code(fresh), strict=True), start=1):
        where = f"code cell {number} of {path.name}: python notebooks/execute.py notebooks/{path.name}"
        assert pictures(before) == pictures(now), where
        if same_rounding or MEASURED not in now.metadata.get("tags", []):
            assert texts(before) == texts(now), where
        else:
            assert [kind for kind, _ in texts(before)] == [kind for kind, _ in texts(now)], where


def test_a_checkpoint_of_ones_own_is_looked_at_and_used():
    """The embedded model's file stands in for one of Stable Diffusion 1.5, though it reads not all of the concept."""
    path = next(path for path in NOTEBOOKS if "checkpoint" in path.stem)

    fresh = execute(path, checkpoint=embedded_checkpoint())

    last = code(fresh)[-1]
    assert pictures(last) == ["image/png"] and "every key is accounted for" in texts(last)[0][1]
    assert [text for text in stderr(fresh) if "is longer than 32 tokens" not in text] == []


@every_notebook
def test_what_is_kept_is_of_one_run_and_tells_nothing_of_the_machine(path):
    kept = nbformat.read(path, as_version=4)

    assert [cell.execution_count for cell in code(kept)] == list(range(1, len(code(kept)) + 1))
    assert stderr(kept) == []
    printed = [text for cell in code(kept) for _, text in texts(cell)]
    assert not [
        text for text in printed if re.search(r"(?<![\w.])/(tmp|home|root|work|usr|Users|var)/|\\Users\\", text)
    ]
    assert kept.metadata.kernelspec.name == "python3"
    assert all(set(cell.metadata) <= {"tags"} for cell in kept.cells)


@every_notebook
def test_a_notebook_asks_shows_and_answers(path):
    kept = nbformat.read(path, as_version=4)

    assert kept.cells[0].source.startswith("# ") and "?" in question(kept)
    assert any(pictures(cell) for cell in code(kept))
    assert kept.cells[-1].cell_type == "markdown" and "**Answer.**" in kept.cells[-1].source
    assert f"| [`{path.name}`]({path.name}) | {question(kept)} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


@every_notebook
def test_a_notebook_defines_nothing_long(path):
    kept = nbformat.read(path, as_version=4)

    assert [name for cell in code(kept) for name, lines in definitions(cell.source) if lines > LONGEST] == []


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.*")) <= MOST


def question(notebook: NotebookNode) -> str:
    """The first cell's sentence in bold."""
    return notebook.cells[0].source.split("**")[1]


def definitions(source: str) -> Iterator[tuple[str, int]]:
    """Functions and classes with their numbers of lines."""
    python = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, (node.end_lineno or first) - first + 1
