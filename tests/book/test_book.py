"""The whole book, executed by papermill as a user does, with parameters small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from altlas_lib import paths
from altlas_lib.results import CHAPTERS, Provenance

pytestmark = pytest.mark.timeout(1200)


def altlas(*arguments, **run_arguments):
    command = [sys.executable, "-m", "altlas_lib.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1100, **run_arguments)


SMALL = Path(__file__).with_name("small.yaml")


@pytest.fixture(scope="module")
def book_run(tmp_path_factory):
    """The book run once, by the command line, from another folder than the project's."""
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALTLAS_OUTPUTS", str(folder / "outputs"))
        return altlas("run", "--parameters", str(SMALL), cwd=folder), paths.run_folder("small")


def test_it_ends_well_and_says_where_the_report_lies(book_run):
    completed, run = book_run
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    lines = completed.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [path.stem for path in sorted(paths.notebooks_dir().glob("*.ipynb"))]
    assert lines[-1] == f"report: {run.report}/"


def test_every_result_validates(book_run):
    _, run = book_run
    for chapter in CHAPTERS:
        result = chapter.load(run)
        assert isinstance(result.provenance, Provenance)
        assert result.provenance.parameters["run_name"] == "small"
        for figure in result.figures:
            assert (run.figures / figure.file).stat().st_size > 5000


def test_the_executed_notebooks_hold_figures_and_no_noise(book_run):
    _, run = book_run
    for path in sorted(run.executed.glob("*.ipynb")):
        outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"], path.name
        if not path.stem.startswith("90"):
            first = next(output.data["text/html"] for output in outputs if "text/html" in output.get("data", {}))
            assert "data:image/png;base64," in first, path.name  # the answer, and the one figure beside it
            assert "once all cells have run" not in first, path.name


def test_the_report_shows_every_chapter(book_run):
    _, run = book_run
    page = (run.report / "index.html").read_text()
    for chapter in CHAPTERS:
        assert f'id="{chapter.chapter}"' in page
        assert page.count("Missing:") == 0
    assert page.count("data:image/png;base64,") == sum(len(chapter.load(run).figures) for chapter in CHAPTERS)
    assert (run.report / "poc_cosine_similarity_cupy_report.md").read_text().startswith("# ")


def test_a_users_own_texts_reach_chapter_20(tmp_path):
    table = tmp_path / "it's mine.csv"
    table.write_text(
        "id,body\n" + "".join(f'{i},"ticket {i % 20}: the <b>printer</b> on floor {i % 7} is broken"\n' for i in range(60))
    )
    wrong = altlas("run", "--only", "20", "--run", "own", "-p", f"texts={table}", "-p", "text_column=bdy")
    assert wrong.returncode == 1
    assert "'bdy'" in wrong.stderr
    assert "body" in wrong.stderr
    assert not list(paths.outputs_dir().glob("own/executed/*"))  # it is found before the start
    right = altlas(
        "run", "--only", "20", "--run", "own", "-p", f"texts={table}", "-p", "text_column=body", "-p", "n_dimensions=16"
    )
    assert right.returncode == 0, right.stderr
    result = json.loads((paths.run_folder("own").results / "similarity.json").read_text())
    assert result["source"]["n_rows"] == 60
    assert "it's mine.csv" in result["source"]["name"]
    assert "printer" in result["most_similar"][0][0]
