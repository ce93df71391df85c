"""Results are typed, carry where each number comes from, and are never half-written."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from pydantic import ValidationError

from altlas_lib import figures, paths
from altlas_lib.devices import find_gpu
from altlas_lib.results import (
    Ceilings,
    EnvironmentResult,
    FigureFile,
    Finding,
    Metric,
    Provenance,
    Quantity,
    ResultError,
    format_value,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
quantities = st.one_of(
    st.builds(lambda samples: Quantity.measured(samples, "s", "some CPU"), st.lists(st.floats(0, 1e9), min_size=1, max_size=9)),
    st.builds(lambda value: Quantity.compiled(value, "bytes", "Tesla T4"), finite),
    st.builds(
        lambda low, ratio: Quantity.projected(low, low * ratio, "s", "Tesla T4", "memory"),
        st.floats(1e-9, 1e9),
        st.floats(1.01, 9),
    ),
)


def environment_result(finding: str = "this machine can run the book", **parameters) -> EnvironmentResult:
    quantity = Quantity.measured([1.0, 2.0, 3.0], "GFLOP/s", "some CPU")
    return EnvironmentResult(
        provenance=Provenance.now(parameters),
        finding=finding,
        ready=True,
        findings=[Finding(check="python", status="ok", found="3.11")],
        ceilings=Ceilings(cpu_matmul_float32=quantity, cpu_copy_bandwidth=quantity),
        target_gpu=find_gpu("T4"),
    )


@given(quantities)
def test_a_quantity_survives_json(quantity):
    assert Quantity.model_validate_json(quantity.model_dump_json()) == quantity


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_measurement_is_the_median_between_its_extremes(samples):
    quantity = Quantity.measured(samples, "s", "some CPU")
    below = sum(sample <= quantity.value for sample in samples)
    above = sum(sample >= quantity.value for sample in samples)
    assert min(below, above) >= len(samples) / 2
    assert (quantity.low, quantity.high, quantity.n_runs) == (min(samples), max(samples), len(samples))


@pytest.mark.parametrize(
    "fields",
    [
        {"basis": "measured", "value": 1.0},  # no spread
        {"basis": "measured", "value": 3.0, "low": 1.0, "high": 2.0, "n_runs": 2},  # outside its spread
        {"basis": "measured", "value": 1.0, "low": 1.0, "high": 1.0, "n_runs": 0},
        {"basis": "projected", "value": 1.0, "low": 1.0, "high": 2.0, "bound_by": "memory"},  # one number instead of a band
        {"basis": "projected", "low": 2.0, "high": 2.0, "bound_by": "memory"},
        {"basis": "projected", "low": 1.0, "high": 2.0},  # bound by nothing
        {"basis": "compiled"},
        {"basis": "guessed", "value": 1.0},
        {"basis": "compiled", "value": math.nan},
        {"basis": "compiled", "value": math.inf},
        {"basis": "compiled", "value": 1.0, "device": ""},
        {"basis": "compiled", "value": 1.0, "colour": "red"},
    ],
)
def test_a_quantity_must_agree_with_its_basis(fields):
    with pytest.raises(ValidationError):
        Quantity(**{"unit": "s", "device": "some CPU", **fields})


def test_measuring_nothing_is_an_error():
    with pytest.raises(ValueError, match="samples is empty"):
        Quantity.measured([], "s", "some CPU")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (90, "s", "1.5 min"),
        (4.2e-6, "s", "4.2 µs"),
        (0, "s", "0 µs"),
        (3 * 2**30, "bytes", "3 GiB"),
        (512, "bytes", "512 bytes"),
        (12345.6, "GFLOP/s", "12,346 GFLOP/s"),
        (-2048, "bytes", "-2 KiB"),
        (1_138_554, "rows/s", "1.14 million rows/s"),
        (49_000, "rows/s", "49,000 rows/s"),
    ],
)
def test_values_read_well(value, unit, text):
    assert format_value(value, unit) == text


def test_a_projection_reads_as_a_band():
    assert str(Quantity.projected(0.5, 2, "s", "Tesla T4", "memory")) == "500 ms to 2 s"


def test_a_finding_has_a_fix_exactly_when_it_is_not_ok():
    with pytest.raises(ValidationError):
        Finding(check="driver", status="warning", found="none")
    with pytest.raises(ValidationError):
        Finding(check="driver", status="ok", found="580", fix="nothing")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    finding=st.text(min_size=1).filter(str.isprintable),
    parameters=st.dictionaries(st.text(min_size=1, max_size=9), st.integers()),
)
def test_what_is_saved_is_loaded(run, finding, parameters):
    saved = environment_result(finding).model_copy(update={"provenance": Provenance.now(parameters)}).save(run)
    assert EnvironmentResult.load(run) == saved
    assert [path.name for path in run.results.iterdir()] == ["environment.json"]  # no temporary file stays


def test_half_a_character_is_named_and_the_result_before_stays(run):
    kept = environment_result().save(run)
    with pytest.raises(ResultError, match=r"environment result cannot be written .*position 3.*not UTF-8"):
        environment_result(texts="caf\udce9").save(run)
    assert EnvironmentResult.load(run) == kept
    path = run.results / "environment.json"
    path.write_text(path.read_text().replace(kept.finding, "\\ud800"))
    with pytest.raises(ResultError, match="cannot be read"):
        EnvironmentResult.load(run)


def test_saving_removes_the_chapters_pictures_that_the_result_does_not_name(run):
    for name in ("00_old-1.png", "00_new-2.png", "10_other-3.png"):
        (run.figures / name).write_bytes(b"png")
    new = FigureFile(file="00_new-2.png", title="new", alt="new")
    environment_result().model_copy(update={"figures": [new]}).save(run)
    assert sorted(path.name for path in run.figures.iterdir()) == ["00_new-2.png", "10_other-3.png"]


def test_a_later_execution_that_fails_keeps_the_pictures_of_the_valid_result(run):
    with figures.figure() as (fig, ax):
        ax.set_title("first")
        first = figures.save_figure(fig, run, "00_x", alt="x")
    picture = (run.figures / first.file).read_bytes()
    environment_result().model_copy(update={"figures": [first]}).save(run)
    with figures.figure() as (fig, ax):
        ax.set_title("second")
        figures.save_figure(fig, run, "00_x", alt="x")  # and then its notebook fails
    (named,) = EnvironmentResult.load(run).figures
    assert (run.figures / named.file).read_bytes() == picture


def test_a_long_title_is_wrapped_and_not_cut(run):
    with figures.figure() as (fig, ax):
        ax.set_yticks([0, 1], ["a_long_name_of_a_row_" * 2] * 2)
        ax.set_title("some words that make a title " * 6)
        saved = figures.save_figure(fig, run, "00_x", alt="x")
        (drawn,) = [text for text in ax.findobj(Text) if text.get_text() == saved.title]
        assert 0 <= drawn.get_window_extent().x0 < drawn.get_window_extent().x1 <= fig.bbox.x1


def test_a_picture_is_saved_without_the_titles_and_the_notebook_keeps_them(run):
    """The report says them in its reader's language."""
    pixels = []
    for titles in (("one", "two"), ("another", "third")):
        with figures.figure(nrows=2) as (fig, axes):
            for ax, title in zip(axes, titles, strict=True):
                ax.set_title(title)
            saved = figures.save_figure(fig, run, "00_x", alt="x")
            assert [ax.get_title("left") for ax in axes] == [*titles]
        assert saved.title == "; ".join(titles)
        pixels.append((run.figures / saved.file).read_bytes())
    assert pixels[0] == pixels[1]
    with figures.figure() as (fig, _), pytest.raises(ValueError, match="expected a title on one of its Axes"):
        figures.save_figure(fig, run, "00_x", alt="x")


def test_provenance_names_code_devices_and_versions(run):
    made = environment_result(n_texts=3).provenance
    assert made.parameters == {"n_texts": 3}
    assert made.devices
    assert made.versions["numpy"]
    assert made.created_at.utcoffset().total_seconds() == 0
    assert made.git_commit is None or len(made.git_commit) == 40


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read"),
        (b'{"schema_version": 1', "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", r"cannot be read .*Input should be an object, got \[1, 2\]"),
        (b'{"schema_version": 0}', r"cannot be read .schema_version: Input should be 4, got 0\)"),
        (b'{"schema_version": 3}', r"cannot be read .schema_version: Input should be 4, got 3\)"),  # of an earlier release
        (b'{"schema_version": 4}', r"cannot be read .provenance: Field required"),
    ],
)
def test_damaged_files_are_refused_with_the_command_that_mends_them(run, content, complaint):
    (run.results / "environment.json").write_bytes(content)
    with pytest.raises(ResultError, match=complaint) as error:
        EnvironmentResult.load(run)
    assert "altlas run --run test --only 00" in str(error.value)


def test_a_changed_field_is_refused_by_name(run):
    environment_result().save(run)
    path = run.results / "environment.json"
    content = json.loads(path.read_text())
    content["ceilings"]["cpu_matmul_float32"]["basis"] = "guessed"
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=r"ceilings\.cpu_matmul_float32\.basis"):
        EnvironmentResult.load(run)


def test_the_latest_result_is_of_the_run_that_made_it_last_and_can_be_read(outputs):
    assert EnvironmentResult.latest() is None
    for made_at, finding in ((2, "newer"), (1, "older"), (3, "damaged")):
        path = paths.run_folder(finding).results / "environment.json"
        environment_result(finding).save(paths.run_folder(finding))
        if finding == "damaged":
            path.write_text("{")
        os.utime(path, (made_at, made_at))
    assert EnvironmentResult.latest().finding == "newer"


@pytest.mark.parametrize(
    ("low", "high", "standing"),
    [
        (0.01, 0.02, "better"),
        (0.0, 0.02, "not told apart"),
        (-0.01, 0.02, "not told apart"),
        (-0.02, 0.0, "not told apart"),
        (-0.02, -0.01, "worse"),
        (None, 0.02, "unknown"),
        (0.01, None, "unknown"),
    ],
)
def test_a_model_stands_by_the_whole_interval_of_its_gain(low, high, standing):
    metric = Metric(name="accuracy", unit="share", higher_is_better=True, model=0.7, base_rate=0.65, n_samples=99)
    assert metric.model_copy(update={"gain_low": low, "gain_high": high}).standing == standing


def test_a_missing_result_says_how_to_make_it(run):
    with pytest.raises(ResultError, match=r"no environment result in run 'test'; .*--only 00"):
        EnvironmentResult.load(run)


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    """A process rewrites one file without pause and is killed; whatever moment that was, the file is whole."""
    path = tmp_path / "result.json"
    program = (
        "import sys; from altlas_lib.paths import write_atomically\n"
        "while True:\n    for byte in (b'a', b'b'): write_atomically(sys.argv[1], byte * 300_000)"
    )
    for moment_s in (0.01, 0.02, 0.05, 0.08):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)])
        try:
            deadline = time.monotonic() + 30
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moment_s)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        content = path.read_bytes()
        assert content in (b"a" * 300_000, b"b" * 300_000)
        path.unlink()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = paths.write_atomically(tmp_path / "file", "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        paths.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "x" * 101, "a\n"])
def test_run_names_cannot_leave_the_outputs_folder(name):
    with pytest.raises(ValueError, match="run name"):
        paths.run_folder(name)
