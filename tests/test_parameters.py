"""Values, ranges, files, tables and columns of the book's parameters are checked before anything starts."""

import sqlite3
from typing import get_args

import pytest

from altlas_lib import book, paths, runner
from altlas_lib.book import RunError
from altlas_lib.data.checks import OnBad
from altlas_lib.inference.convert import METHODS
from altlas_lib.paths import shipped_toml
from altlas_lib.report.language import LANGUAGES
from altlas_lib.training.model.config import PRESETS

CHAPTERS = book.find_chapters()
DECLARED = {name: parameter for chapter in CHAPTERS for name, parameter in chapter.parameters.items()}
ROWS = shipped_toml("altlas_lib", "parameters.toml")


def check(*assignments, from_file=None):
    values = book.resolve_parameters(CHAPTERS, CHAPTERS, from_file or {}, assignments)
    for chapter in CHAPTERS:
        chapter.check(values)


def test_every_number_of_the_book_has_a_range_and_every_range_a_parameter():
    assert ROWS.keys() <= DECLARED.keys()
    numbers = {name for name, parameter in DECLARED.items() if "int" in parameter.type_name or "float" in parameter.type_name}
    assert numbers <= ROWS.keys()


def test_the_books_own_values_are_in_range_and_what_they_name_is_there():
    for parameter in DECLARED.values():
        if parameter.name != "run_name":
            assert parameter.validate(parameter.default) == parameter.default
    for file in (paths.notebooks_dir() / "parameters").glob("*.yaml"):
        check(from_file=book.load_parameters_file(file.stem)[1])


def test_choices_are_those_of_the_library():
    assert ROWS["on_bad"]["one_of"] == list(get_args(OnBad))
    assert ROWS["language"]["one_of"] == list(LANGUAGES)
    assert ROWS["calibration_method"]["one_of"] == list(METHODS)
    assert set(ROWS["preset"]["one_of"]) == set(PRESETS)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("n_epochs=-5", "n_epochs=-5: expected int, at least 1, at most 1000000, such as 3"),
        ("n_epochs=99999999999999999999", "at most 1000000"),
        ("on_bad=explode", "on_bad=explode: expected str, one of ['raise', 'skip']"),
        ("similarity_sizes=[-1]", "similarity_sizes=[-1]: expected list[int], at least 1"),
        ("similarity_sizes=[]", "similarity_sizes=[]: expected list[int]"),
        ("regime_strength=1", "below 1"),
        ("learning_rate=0", "above 0"),
        ("least_saving_s=-0.1", "at least 0"),
        ("preset=huge", "one of ['reference', 'option1', 'option2', 'quick']"),
        ("devices=0", "devices=0: expected int, at least 1, at most 1024, such as 1"),
        ("devices=64", "devices=64: micro_batch_size=32: give each device a sample of it"),
        ("target_gpu=RTX9090", "target_gpu='RTX9090': GPU 'RTX9090' is not in the catalogue; did you mean 'RTX 4090'"),
        ('engine_gpus=["T4", "X"]', "GPU 'X' is not in the catalogue"),
        ("texts=no.csv", "10_hotspot_profiling, parameter texts='no.csv': there is no file 'no.csv'"),
        ("texts=two.csv", "which column?"),
        ("text_column=c", "the built-in corpus has no column 'c'"),
        ("series=two.csv", "which column?"),
        ("series=game.sqlite", "which table?"),
        ("embedding=word2vec", "expected 'svd', 'hashing', a .npy matrix or a folder"),
        ("embedding=none.npy", "that is there"),
        ("target_arguments=[1]", "expected a JSON object"),
        ("target_arguments=" + "[" * 100_000, "expected a JSON object"),
        ("target_requests=none.jsonl", "that is there"),
        ("served_model=none.onnx", "that is there"),
        ("served_model=model", "expected a .keras or .onnx file that is there, or module:function"),
        ("served_data=none.npz", "that is there"),
        ("onnx_model=none.onnx", "that is there"),
        ("language=de", "one of ['en', 'tr']"),
        ("rules=none.yaml", "rules none.yaml: cannot be read"),
        ('price_per_hour=["RTX9090=1"]', "'RTX9090' is not in the catalogue"),
        ("compare_with=none", "expected another run"),
        ("compare_with=../x", "expected another run"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, monkeypatch, assignment, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    with sqlite3.connect(tmp_path / "game.sqlite") as database:
        database.execute("CREATE TABLE first (x REAL)")
        database.execute("CREATE TABLE second (x REAL)")
    with pytest.raises(RunError) as error:
        check(assignment)
    assert message in str(error.value)
    assert len(str(error.value)) < 2000


def test_what_is_there_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.csv").write_text("a,b\nhello,2\n")
    check("texts=two.csv", "text_column=a", "series=two.csv", "series_column=b", 'price_per_hour=["T4=0.5"]', 'gpus=["T4"]')


def test_half_a_character_is_no_text():
    with pytest.raises(RunError, match="expected str"):
        DECLARED["target"].validate("\ud800")


def test_nothing_starts_and_no_folder_is_made(outputs, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a chapter was started"))
    for arguments in ({"assignments": ["target_gpu=RTX9090"]}, {"parameters": ""}, {"name": "goo[d]"}, {"name": "x/../y"}):
        with pytest.raises(RunError):
            runner.run_book(**arguments)
    assert not outputs.exists()


def test_the_name_of_a_run_to_resume_is_a_name_and_no_pattern(outputs):
    run = paths.run_folder("good")
    (run.path / "run.json").write_text("{}")
    assert runner._run_to_resume("good") == run
    for pattern in ("goo[d]", "*", "?ood", "../outputs/good", "good/"):
        with pytest.raises(RunError, match=r"no run|run name"):
            runner._run_to_resume(pattern)
