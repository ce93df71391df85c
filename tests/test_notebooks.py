"""The notebooks as files: what JupyterLab, papermill and git expect of them."""

import ast
import itertools
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from altlas_lib import book, paths
from altlas_lib.results import CHAPTERS

NOTEBOOKS = sorted(paths.notebooks_dir().glob("*.ipynb"))
PARAMETER_FILES = [
    *sorted((paths.notebooks_dir() / "parameters").glob("*.yaml")),
    Path(__file__).parent / "book" / "small.yaml",
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def cells(path):
    return nbformat.read(path, as_version=4).cells


def code(path):
    return [cell for cell in cells(path) if cell.cell_type == "code"]


def test_the_book_has_its_chapters():
    assert [path.stem for path in NOTEBOOKS] == [
        "00_setup_verification",
        "10_hotspot_profiling",
        "20_cupy_poc",
        "30_memory_optimized_training",
        "40_inference_optimization",
        "50_serving",
        "90_report",
    ]
    assert {chapter.number for chapter in CHAPTERS} == {path.stem[:2] for path in NOTEBOOKS} - {"90"}


def test_it_is_valid_and_runs_on_the_kernel_python3(notebook):
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    assert content.metadata.kernelspec.name == "python3"
    assert set(content.metadata) == {"kernelspec", "language_info"}
    assert dict(content.metadata.language_info) == {"name": "python"}


def test_it_is_stored_without_outputs(notebook):
    for cell in code(notebook):
        assert cell.execution_count is None
        assert cell.outputs == []
        hidden = "hide-input" in cell.metadata.get("tags", ())  # it does not teach: JupyterLab folds it
        assert cell.metadata.get("jupyter", {}) == ({"source_hidden": True} if hidden else {})
        assert set(cell.metadata) <= {"tags", "jupyter"}


def test_papermill_reads_every_declared_parameter_and_its_help(notebook):
    """papermill's parser knows less Python than Python does: what it misses, a papermill user cannot set without a warning."""
    declared = book.read_parameters(notebook)
    seen = papermill.inspect_notebook(str(notebook))
    assert list(seen) == list(declared)
    assert {name: value["inferred_type_name"] for name, value in seen.items()} == {
        name: parameter.type_name for name, parameter in declared.items()
    }
    assert all(value["help"] for value in seen.values())
    assert next(iter(declared)) == "run_name"
    for parameter in declared.values():
        parameter.validate(parameter.default)


def test_a_parameter_name_means_the_same_in_every_notebook():
    types = {}
    for path in NOTEBOOKS:
        for name, parameter in book.read_parameters(path).items():
            assert types.setdefault(name, parameter.type_name) == parameter.type_name, (path.name, name)


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_every_parameters_file_fits_the_book(path):
    chapters = book.find_chapters()
    content = yaml.safe_load(path.read_text())
    assert book.resolve_parameters(chapters, chapters, content, ()) == content


def test_the_parameters_files_are_there():
    assert {path.stem for path in PARAMETER_FILES} >= {"quick", "full"}


def test_it_narrates_and_the_library_computes(notebook):
    for cell in code(notebook):
        most_lines = 21 if "parameters" in cell.metadata.get("tags", ()) else 15
        assert len(cell.source.splitlines()) <= most_lines, cell.source
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.While) for node in nodes), cell.source


def test_it_reads_as_a_story(notebook):
    headings = [
        line.split(" ", 1)
        for cell in cells(notebook)
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    levels = [len(marks) for marks, _ in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert levels.count(2) >= 2
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert not headings[0][1][0].isdigit()
    assert cells(notebook)[0].cell_type == "markdown"
    assert cells(notebook)[-1].cell_type == "code"


def test_it_records_its_parameters_and_shows_its_answer_first(notebook):
    """The parameters are what is annotated by then, so `Notebook` comes right after them."""
    if notebook.stem.startswith("90"):
        pytest.skip("the report saves no result of its own")
    sources = [cell.source for cell in code(notebook)]
    assert "chapter = Notebook(globals())" in sources[1] or "chapter, notes = Notebook(globals())" in sources[1]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert len([call for call in calls if ast.unparse(call.func) == "chapter.save"]) == 1
    first = [k for call in calls for k in call.keywords if k.arg == "first" and ast.unparse(call.func) == "chapter.figure"]
    assert len(first) == 1
