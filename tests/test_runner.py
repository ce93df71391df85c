"""The runner on a small book of its own, with real kernels: parameters are checked first, failures and kills lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_lib import book, paths, runner
from altlas_lib.book import Parameter, RunError

RUN_NAME = 'run_name: str = "interactive"  # name of the run folder'


def write_notebook(path, parameters, *cells, tags=("parameters",)):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A book of three chapters that write down, outside the run, what they were given."""
    folder = tmp_path / "it's a {book}"
    notebooks = folder / "notebooks"
    (notebooks / "parameters").mkdir(parents=True)
    (notebooks / "parameters" / "quick.yaml").write_text("n_texts: 7\n")
    journal = folder / "journal"
    write = f"open({str(journal)!r}, 'a').write"
    write_notebook(
        notebooks / "55_first.ipynb", f"{RUN_NAME}\nn_texts: int = 3", f"{write}(f'first {{n_texts}} {{run_name}}\\n')"
    )
    write_notebook(
        notebooks / "60_second.ipynb",
        f"{RUN_NAME}\nscale: float = 1.0\nsizes: list[int] = [1]\nfail: bool = False\nsleep_s: float = 0.0",
        f"import os, time\n{write}(f'second {{scale}} {{sizes}} {{os.getpid()}}\\n')\ntime.sleep(sleep_s)",
        "if fail:\n    raise OSError('no <b>disk</b>')",
    )
    write_notebook(notebooks / "70_third.ipynb", RUN_NAME, f"{write}('third\\n')")
    monkeypatch.setenv("ALTLAS_ROOT", str(folder))
    return folder


def journal(root):
    path = root / "journal"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def altlas_run(root, *arguments, **popen_arguments):
    command = [sys.executable, "-m", "altlas_lib.cli", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, **popen_arguments)


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_executes_the_chapters_in_order_with_their_parameters(root, outputs):
    lines = []
    run = runner.run_book(assignments=["sizes=[2, 3]", "scale=1e-3"], tell=lines.append)
    assert [line[:-1] if line[0] == "second" else line for line in journal(root)] == [
        ["first", "7", "quick"],
        ["second", "0.001", "[2,", "3]"],
        ["third"],
    ]
    assert run.path == outputs / "quick"
    assert [line.split()[0] for line in lines[:-1]] == ["55_first", "60_second", "70_third"]
    assert all(line.endswith(" s") for line in lines[:-1])
    assert lines[-1] == f"report: {run.report}/"
    assert sorted(path.name for path in run.executed.glob("*.ipynb")) == ["55_first.ipynb", "60_second.ipynb", "70_third.ipynb"]
    assert "outputs" not in nbformat.read(root / "notebooks/55_first.ipynb", as_version=4).cells[1].get("outputs", [])


def test_a_failure_keeps_what_was_done_and_resume_goes_on_after_it(root, outputs):
    process = altlas_run(root, "-p", "fail=true", "-p", "n_texts=4")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stdout.startswith("55_first")
    assert "60_second, In [4], failed:\n    if fail:\n        raise OSError" in stderr
    assert "OSError: no <b>disk</b>" in stderr
    executed = outputs / "quick" / "executed"
    assert str(executed / "60_second.failed.ipynb") in stderr
    assert nbformat.read(executed / "60_second.failed.ipynb", as_version=4).cells
    assert not (executed / "60_second.ipynb").exists()

    lines = []
    runner.run_book(resume=True, assignments=["fail=false"], tell=lines.append)
    assert lines[0].split() == ["55_first", "done", "before"]
    assert [line[:2] for line in journal(root)] == [["first", "4"], ["second", "1.0"], ["second", "1.0"], ["third"]]
    assert not (executed / "60_second.failed.ipynb").exists()


def test_sigkill_then_resume_continues_the_latest_run_with_its_own_parameters(root, outputs):
    process = altlas_run(root, "-p", "n_texts=5", "-p", "sleep_s=600", "--run", "mine")
    wait_for(lambda: len(journal(root)) == 2)
    process.kill()
    process.communicate()
    wait_for(lambda: not is_running(int(journal(root)[1][-1])))  # its kernel must not outlive it

    (root / "notebooks/60_second.ipynb").write_text(
        (root / "notebooks/60_second.ipynb").read_text().replace("time.sleep", "abs")
    )
    run = runner.run_book(resume=True, tell=lambda line: None)
    assert run.name == "mine"
    assert [line[:2] for line in journal(root)] == [["first", "5"], ["second", "1.0"], ["second", "1.0"], ["third"]]


def test_ctrl_c_ends_the_kernel_too(root):
    process = altlas_run(root, "-p", "sleep_s=600")
    wait_for(lambda: len(journal(root)) == 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; `altlas run --resume` goes on after the last finished chapter\n"
    wait_for(lambda: not is_running(int(journal(root)[1][-1])))


def test_a_kernel_that_dies_is_told_from_a_cell_that_raises(root):
    write_notebook(root / "notebooks/56_dies.ipynb", RUN_NAME, "import os\nos._exit(9)")
    with pytest.raises(runner.ChapterFailure, match="kernel died") as failure:
        runner.run_book(only=["56"], tell=lambda line: None)
    assert failure.value.source == "import os\nos._exit(9)"


def test_resume_redoes_a_chapter_whose_notebook_or_parameters_changed_and_all_after_it(root):
    runner.run_book(tell=lambda line: None)
    runner.run_book(resume=True, tell=lambda line: None)
    assert len(journal(root)) == 3
    runner.run_book(resume=True, assignments=["scale=2.0"], tell=lambda line: None)
    assert [line[0] for line in journal(root)[3:]] == ["second", "third"]
    write_notebook(root / "notebooks/55_first.ipynb", f"{RUN_NAME}\nn_texts: int = 3", "1 + 1")
    runner.run_book(resume=True, tell=lambda line: None)
    assert [line[0] for line in journal(root)[5:]] == ["second", "third"]


def test_running_one_chapter_does_not_make_a_run_forget_what_it_was_asked_for(root):
    """A full run fails in its second chapter, the user tries that one alone with another parameter, then goes on."""
    with pytest.raises(runner.ChapterFailure):
        runner.run_book(assignments=["fail=true", "n_texts=5"], tell=lambda line: None)
    lines = []
    runner.run_book(only=["60"], assignments=["scale=2.0"], name="quick", tell=lines.append)
    assert lines[-1].startswith("results: ")
    assert lines[-1].endswith("altlas run --run quick --only 70")
    runner.run_book(resume=True, tell=lines.append)
    assert [line[:2] for line in journal(root)] == [["first", "5"], ["second", "1.0"], ["second", "2.0"], ["third"]]
    assert lines[-1].startswith("report: ")


def test_a_report_is_not_done_once_another_chapter_ran_again(root):
    runner.run_book(tell=lambda line: None)
    lines = []
    runner.run_book(only=["55"], tell=lines.append)
    assert "report: " not in "".join(lines).replace("for a report", "")
    runner.run_book(resume=True, tell=lines.append)
    assert [line[0] for line in journal(root)] == ["first", "second", "third", "first", "third"]


@pytest.mark.parametrize("variable", ["ALTLAS_OUTPUTS", "ALTLAS_ROOT"])
def test_a_folder_that_cannot_be_used_is_a_message_and_no_traceback(root, variable):
    process = altlas_run(root, "--only", "55", env={**os.environ, variable: "/dev/null/x"})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "/dev/null" in stderr
    assert "Traceback" not in stderr


def test_two_runs_cannot_share_a_folder(root):
    run = paths.run_folder("quick")
    with runner._lock(run), pytest.raises(RunError, match="'quick' is in progress"):
        runner.run_book(tell=lambda line: None)
    assert journal(root) == []


def test_a_damaged_manifest_means_that_nothing_is_done(root):
    run = runner.run_book(only=["55"], tell=lambda line: None)
    (run.path / "run.json").write_text('{"finished": ')
    runner.run_book(resume=True, name="quick", only=["55"], tell=lambda line: None)
    assert len(journal(root)) == 2


def test_resume_without_any_run_says_how_to_start_one(root):
    for name in (None, "typo"):
        with pytest.raises(RunError, match="start one with `altlas run`"):
            runner.run_book(resume=True, name=name)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"assignments": ["n_text=5"]}, "unknown parameter 'n_text'; did you mean 'n_texts'?"),
        ({"assignments": ["zzz=5"]}, "unknown parameter 'zzz'; known: fail, n_texts, scale, sizes, sleep_s"),
        ({"assignments": ["n_texts=many"]}, "n_texts=many: expected int, such as 3"),
        ({"assignments": ["n_texts=1.5"]}, "expected int"),
        ({"assignments": ["scale=nan"]}, "expected float"),
        ({"assignments": ["sizes=5"]}, "expected list[int], such as [1]"),
        ({"assignments": ['sizes=["a"]']}, "expected list[int]"),
        ({"assignments": ["fail=perhaps"]}, "expected bool"),
        ({"assignments": ["n_texts"]}, "expected name=value"),
        ({"assignments": ["run_name=x"]}, "set by --run NAME"),
        ({"assignments": ["scale=2"], "only": ["55"]}, "'scale' belongs to 60_second"),
        ({"only": ["51"]}, "no chapter '51'; there are 55_first, 60_second, 70_third"),
        ({"from_": "99"}, "no chapter '99'"),
        ({"only": ["55"], "from_": "60"}, "exclude each other"),
        ({"parameters": "huge"}, "no parameters 'huge'; give one of quick, or the path"),
        ({"name": "../x"}, "run name '../x'"),
    ],
)
def test_wrong_requests_are_refused_before_anything_starts(root, outputs, arguments, complaint):
    with pytest.raises((RunError, ValueError)) as error:
        runner.run_book(**arguments)
    assert complaint in str(error.value)
    assert journal(root) == []
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"n_texts: '7'", "n_texts='7': expected int"),
        (b"n_texts: true", "expected int"),
        (b"n_textz: 7", "did you mean 'n_texts'?"),
        (b"[1, 2]", "expected lines 'name: value'"),
        (b"5: 7", "expected lines 'name: value'"),
        (b"n_texts: [", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"n_texts: !!python/object/apply:os.system ['touch pwned']", "is not YAML"),
    ],
)
def test_a_bad_parameters_file_is_refused(root, content, complaint):
    path = root / "it's {mine}.yaml"
    path.write_bytes(content)
    with pytest.raises(RunError) as error:
        runner.run_book(parameters=str(path))
    assert complaint in str(error.value)
    assert journal(root) == []
    assert not (root / "pwned").exists()


def test_an_empty_parameters_file_means_the_notebooks_own_defaults(root):
    (root / "mine.yaml").write_text("")
    run = runner.run_book(parameters=str(root / "mine.yaml"), only=["55"], tell=lambda line: None)
    assert journal(root) == [["first", "3", "mine"]]
    assert json.loads((run.path / "run.json").read_text())["finished"]["55_first"]["parameters"] == {}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("n = 3", "expected 'name: type = literal'"),
        ("n: int = len('abc')", "expected 'name: type = literal'"),
        ("n: complex = 1j", "expected 'name: type = literal'"),
        ("n: int", "expected 'name: type = literal'"),
        ("n: int = ", "line 1"),
    ],
)
def test_a_parameters_cell_is_typed_literals_only(tmp_path, source, complaint):
    write_notebook(tmp_path / "50_x.ipynb", source)
    with pytest.raises(RunError) as error:
        book.read_parameters(tmp_path / "50_x.ipynb")
    assert complaint in str(error.value)


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    (tmp_path / "50_x.ipynb").write_text("hello")
    with pytest.raises(RunError, match=r"50_x\.ipynb is not a notebook"):
        book.read_parameters(tmp_path / "50_x.ipynb")
    write_notebook(tmp_path / "51_x.ipynb", "n: int = 3", tags=())
    with pytest.raises(RunError, match="0 cells tagged"):
        book.read_parameters(tmp_path / "51_x.ipynb")


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.lists(st.integers())))
def test_what_is_typed_on_the_command_line_is_what_the_file_would_say(value):
    type_name = {int: "int", float: "float", bool: "bool", list: "list[int]"}[type(value)]
    parameter = Parameter("x", type_name, value)
    assert parameter.parse(json.dumps(value)) == parameter.validate(value) == value


@given(st.text())
def test_text_is_taken_as_it_is(text):
    assert Parameter("x", "str", "").parse(text) == text


def test_chatter_on_stderr_goes_to_the_chapters_log_and_not_to_the_terminal(root, outputs):
    write_notebook(root / "notebooks/55_loud.ipynb", RUN_NAME, "import os; os.write(2, b'chatter')")
    process = altlas_run(root, "--only", "55", env={**os.environ})
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
