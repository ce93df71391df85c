"""Generated damage for every reader of a user's file: an answer or one message, never a bare traceback, a hang, a full memory.

A small dose here; `make fuzz` sets ALTLAS_FUZZ, the number of inputs for each reader.
"""

import contextlib
import functools
import io
import json
import os
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altlas_lib import book, cli, data, devices, environment, paths, reading, results
from altlas_lib.data import columns
from altlas_lib.inference import InferenceError, llm
from altlas_lib.manifest import Manifest
from altlas_lib.profiling import ProfilingError
from altlas_lib.profiling.run import asgi
from altlas_lib.report import Rules

N_INPUTS = int(os.environ.get("ALTLAS_FUZZ", "25"))
MEMORY_BYTES, TIME_S = 2**31, 60  # for one input; a reader's own limits are far below

HOSTILE = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"'\"`",
        b"\r\n\r\n",
        b"\n" * 50,
        b'"' * 51,
        b"\x1b[2J",
    ),
    *(
        b"[" * 5000,
        b"{" * 5000,
        b'{"a":' * 5000,
        b"9" * 5000,
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
    ),
    *(b"!!int abc", b"!!timestamp x", b"2024-13-41", b"2024-01-01", b"&a [*a]", b"*a", b"<<: 1", b"? [a]\n: 1", b"!!binary x"),
    *(
        b"," * 5000,
        b";\t",
        b"x" * 70_000,
        b"a: 1\na: 2\n",
        b"PCI\\VEN_10DE&DEV_0000",
        b"99999999999 MB",
        b": ",
        b"\x7f\xff\xff\xff",
    ),
)
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["insert", "overwrite", "cut", "repeat", "truncate"]),
        st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=20)),
    ),
    max_size=6,
)


def damaged(seed: bytes, edits) -> bytes:
    for where, how, piece in edits:
        at = int(where * len(seed))
        head, tail = seed[:at], seed[at:]
        seed = {
            "insert": head + piece + tail,
            "overwrite": head + piece + tail[len(piece) :],
            "cut": head + tail[len(piece) + 1 :],
            "repeat": head + tail[:200] * 20 + tail,
            "truncate": head,
        }[how][: 2**20]
    return seed


def of_array(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def of_table(**named) -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.table(named), buffer)
    return buffer.getvalue()


def of_database(*statements: str) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        return connection.serialize()


def load_run(read, name, path):
    """A run whose file of that name is the one given."""
    run = paths.RunFolder(path.parent)
    target = path.parent / name
    target.parent.mkdir(exist_ok=True)
    path.replace(target)
    return read(run)


def text_of(path) -> str:
    """As the system gives a program its arguments."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def read_language_model(path):
    """Not in a child, as `read_model` does: thousands of them would take an hour."""
    return llm.answer({"path": str(path)}) if path.is_file() else llm.read_model(path)


read_result = functools.partial(load_run, results.EnvironmentResult.load, "results/environment.json")
read_manifest = functools.partial(load_run, Manifest.load, "run.json")


def of_language_model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder, "x.gguf"), "llama")
        for add, value in ((writer.add_block_count, 1), (writer.add_embedding_length, 8), (writer.add_head_count, 2)):
            add(value)
        writer.add_tensor("token_embd.weight", np.zeros((4, 8), "float16"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(folder, "x.gguf").read_bytes()


def read_checkpoint(path):
    from altlas_lib.training.fit.checkpoint import CheckpointError, CheckpointFolder

    path.replace(path.with_name("update-000000001.npz"))
    with contextlib.closing(CheckpointFolder(path.parent, {"a": 1}, resume=True)) as folder:
        try:
            return folder.load()
        except CheckpointError as error:
            raise data.DataError(str(error)) from error


def of_checkpoint(**arrays) -> bytes:
    buffer = io.BytesIO()
    said = {"fingerprint": {"a": 1}, "progress": {"micro_batch_size": 1}, "names": [*arrays]}
    np.savez(buffer, header=np.frombuffer(json.dumps(said).encode(), "uint8"), **arrays)
    return buffer.getvalue()


FOLDER = paths.notebooks_dir() / "parameters"
CSV = b'text,number\nhello world,1.5\n"quoted, text",2\n'
DATES = pa.array([0, 2**62, -(2**62)], pa.timestamp("ms"))
DXDIAG = (
    b"Operating System: Windows 11 (10.0, Build 26100)\nMemory: 32768MB RAM\n\nCard name: NVIDIA GeForce RTX 3060\n"
    b"Device Key: Enum\\PCI\\VEN_10DE&DEV_1F9D\nDisplay Memory: 28000 MB\nDedicated Memory: 12000 MB\nShared Memory: 16000 MB\n"
    b"Driver Version: 32.0.15.8180\n"
)
RATE = results.Quantity.measured([1.0, 2.0], "GFLOP/s", "CPU")
RESULT = results.EnvironmentResult(
    provenance=results.Provenance.now({"a": [1]}),
    finding="x",
    ready=True,
    findings=[results.Finding(check="GPU", status="ok", found="T4")],
    ceilings=results.Ceilings(cpu_matmul_float32=RATE, cpu_copy_bandwidth=RATE),
    target_gpu=devices.find_gpu("T4"),
)
MANIFEST = b'{"parameters": {"n": 1}, "chapters": ["00_x"], "finished": {"00_x": {"parameters": {}, "notebook_sha256": "0"}}}'
skip = {"on_bad": "skip"}
READERS = {  # name -> suffix, valid content, reader
    "texts.txt": (".txt", b"hello\nworld\n", data.load_texts),
    "texts.csv": (".csv", CSV, functools.partial(data.load_texts, column="text", **skip)),
    "texts.jsonl": (".jsonl", b'{"text": "hello"}\n{"text": "world", "n": 1}\n', functools.partial(data.load_texts, **skip)),
    "texts.parquet": (".parquet", of_table(text=["hello", "world"]), data.load_texts),
    "texts, dates": (".parquet", of_table(when=DATES), functools.partial(data.load_texts, **skip)),
    "series.csv": (".csv", CSV, functools.partial(data.load_series, minimum=1.0, **skip)),
    "series.parquet": (".parquet", of_table(x=[1.0, 2.0], y=["a", "b"]), data.load_series),
    "series.npy": (".npy", of_array(np.arange(5.0)), data.load_series),
    "series.sqlite": (".sqlite", of_database("CREATE TABLE t (x REAL)", "INSERT INTO t VALUES (1), (2)"), data.load_series),
    "vectors.npy": (".npy", of_array(np.eye(3)), data.load_embedding),
    "parameters": (".yaml", (FOLDER / "full.yaml").read_bytes(), lambda path: book.load_parameters_file(str(path))),
    "rules": (".yaml", b"money: {currency: EUR, runs_per_day: 5}\nport: {least_workload_gain: 2}\n", Rules.load),
    "result": (
        ".json",
        RESULT.model_dump_json().encode(),
        functools.partial(load_run, results.EnvironmentResult.load, "results/environment.json"),
    ),
    "manifest": (".json", MANIFEST, read_manifest),
    "dxdiag": (".txt", DXDIAG, lambda path: environment.findings_from_dxdiag(environment.read_dxdiag(path))),
    "requests": (".jsonl", b'{"method": "POST", "path": "/a", "json": {"b": [1]}}\n', lambda path: asgi.load_requests(path)),
    "model.gguf": (".gguf", of_language_model(), read_language_model),
    "checkpoint": (".npz", of_checkpoint(x=np.zeros(2)), read_checkpoint),
    "--arg": (".txt", b'n={"a": [1, 2]}', lambda path: cli._argument(text_of(path))),
    "-p": (".txt", b"[1, 2, 3]", lambda path: book.Parameter("k", "list[int]", [1]).parse(text_of(path))),
}
MESSAGES = (data.DataError, book.RunError, results.ResultError, ProfilingError, InferenceError)


@contextlib.contextmanager
def bounded():
    """Ends what hangs and refuses memory beyond the limit, where the system can."""
    try:
        import resource
    except ImportError:
        yield
        return

    def end(*_):
        raise AssertionError(f"no end within {TIME_S} s")

    before, kept = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, end)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY_BYTES, before[1]))
    signal.alarm(TIME_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(read, path, reader: str) -> str:
    """`"answer"` or `"message"`; of anything else the test fails with what was raised.

    What reads the command line and rules raises ValueError, which is then said plainly: it must name what was given.
    """
    with bounded():
        try:
            read(path)
        except MESSAGES as error:
            message = str(error)
        except ValueError as error:
            if type(error) is not ValueError or reader not in ("rules", "dxdiag", "--arg"):
                raise
            message = str(error)
        else:
            return "answer"
    assert 20 < len(message) < 3000
    return "message"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.timeout(0 if "ALTLAS_FUZZ" in os.environ else 300)
def test_damage_is_an_answer_or_a_message(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MAX_ROWS", 10**6)
    monkeypatch.setattr(columns, "ROW_TIME_LIMIT_S", 5.0)
    suffix, seed, read = READERS[reader]
    if reader == "checkpoint":
        pytest.importorskip(
            "altlas_lib.training.fit.checkpoint", exc_type=ImportError
        )  # Keras wants more memory than damage may
    counts = Counter()

    @settings(max_examples=N_INPUTS, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def try_one(edits):
        path = tmp_path / f"input{suffix}"
        path.write_bytes(damaged(seed, edits))
        counts[outcome(read, path, reader)] += 1

    try_one()
    print(f"{reader}: {dict(counts)}")
    assert counts.total() >= min(N_INPUTS, 20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("--arg", "-p", "checkpoint")])
def test_a_fifo_is_refused_at_once(reader, tmp_path):
    suffix, _, read = READERS[reader]
    path = tmp_path / f"fifo{suffix}"
    os.mkfifo(path)
    # A manifest that cannot be read means that nothing is done.
    assert outcome(read, path, reader) == ("answer" if reader == "manifest" else "message")


@pytest.mark.parametrize("reader", ["parameters", "rules", "dxdiag", "requests", "model.gguf"])
def test_a_device_without_end_is_refused(reader):
    with bounded(), pytest.raises((*MESSAGES, ValueError)):
        READERS[reader][2](Path("/dev/zero"))


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_six_gib_in_one_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with open(path, "wb") as file:
        file.truncate(6 * 2**30)  # a hole: no disk is used
    with bounded(), pytest.raises(data.DataError, match=r"line 1 of 'x\.\w+' is 16,777,216 characters or longer"):
        data.load_texts(path)


def test_a_million_columns(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(",".join(f"c{i}" for i in range(10**6)) + "\n" + ",".join(["1"] * 10**6) + "\n")
    with bounded(), pytest.raises(data.DataError, match="which column") as error:
        data.load_series(path)
    assert len(str(error.value)) < 3000


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (f"{ENDLESS} SELECT x FROM c", "more than 100,000 rows"),
        (f"{ENDLESS} SELECT count(*) AS x FROM c", "interrupted"),
        ("SELECT zeroblob(1000000000) AS x", "too big"),
        ("SELECT x FROM nowhere", "no such table"),
    ],
)
def test_sqlite_views_without_end_or_bound(tmp_path, monkeypatch, view, message):
    monkeypatch.setattr(columns, "MAX_ROWS", 100_000)
    monkeypatch.setattr(columns, "ROW_TIME_LIMIT_S", 0.5)
    (tmp_path / "x.sqlite").write_bytes(of_database(f"CREATE VIEW v AS {view}"))
    with bounded(), pytest.raises(data.DataError, match=message):
        data.load_series(tmp_path / "x.sqlite", table="v", column="x")


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_timestamp_beyond_pythons_is_a_bad_row(tmp_path, on_bad):
    (tmp_path / "x.parquet").write_bytes(of_table(when=DATES))
    for load in (data.load_texts, data.load_series):
        with pytest.raises(data.DataError, match=r"3 of 3 rows .*timestamp\[ms\].*beyond"):
            load(tmp_path / "x.parquet", column="when", on_bad=on_bad)


@pytest.mark.parametrize(
    ("load", "arguments", "message"),
    [
        (data.load_series, {"minimum": "1"}, "minimum='1': expected a finite number"),
        (data.load_series, {"minimum": float("nan")}, "minimum=nan"),
        (data.load_texts, {"limit": 1.5}, "limit=1.5: expected a whole number"),
        (data.load_texts, {"limit": "1"}, "limit='1'"),
        (data.load_texts, {"column": []}, r"column=\[\]: expected a name"),
        (data.load_series, {"table": 5}, "table=5: expected a name"),
    ],
)
def test_arguments_of_another_kind_are_named(tmp_path, load, arguments, message):
    (tmp_path / "x.csv").write_bytes(CSV)
    with pytest.raises(data.DataError, match=message):
        load(tmp_path / "x.csv", **arguments)


@pytest.mark.parametrize("source", [None, 5, b"x.csv", "", "a\0b.csv", "\ud800.csv", "x" * 5000 + ".csv"])
def test_a_source_that_can_be_no_file_is_named(source):
    for load in (data.load_texts, data.load_series):
        with pytest.raises(data.DataError):
            load(source)


@pytest.mark.parametrize("dtype", [[], [("a", "f4")], "U1", "M8[s]"])
def test_a_checkpoint_of_arrays_that_are_no_numbers_is_refused(tmp_path, dtype):
    (tmp_path / "x.npz").write_bytes(of_checkpoint(x=np.zeros(2, dtype)))
    with pytest.raises(data.DataError, match="x is of dtype"):
        read_checkpoint(tmp_path / "x.npz")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 there")
def test_a_file_whose_name_no_result_could_hold_is_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.csv")
    path.write_bytes(CSV)
    with pytest.raises(data.DataError, match="cannot be opened") as error:
        data.load_texts(path, column="text")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
        ("x: {b: 1, b: 2}", "'b' stands there twice"),
        ("a: &a [1]\nb: *a", "write the value out"),
        ("a: !!int abc", "invalid literal"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: " + "[" * 5000, "recursion"),
        ("a: 2024-13-41", "month"),
        ("a: !!timestamp x", "is not YAML"),
    ],
)
def test_yaml_that_is_no_plain_data(tmp_path, content, message):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        reading.read_yaml(tmp_path / "x.yaml")
    assert str(tmp_path / "x.yaml") in str(error.value)
    for read in (lambda path: book.load_parameters_file(str(path)), Rules.load):
        with pytest.raises((book.RunError, ValueError), match=r"x\.yaml"):
            read(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 5000, ".", "/"])
def test_parameters_that_can_be_no_file_are_named(name):
    with pytest.raises(book.RunError, match=r"no parameters .*; give one of full, quick, t4"):
        book.load_parameters_file(name)
