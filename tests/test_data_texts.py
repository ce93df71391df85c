"""Texts from files and from the built-in corpus, their vectors, and what bad input gets."""

import csv
import io
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib import data, paths
from altlas_lib.data import corpus

SUFFIXES = (".txt", ".csv", ".jsonl", ".ndjson", ".parquet")

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
lines = unicode_text.filter(lambda text: not {"\n", "\r"} & set(text) and not text.startswith("\ufeff"))


def write_texts(path, texts):
    """By pandas, which reads and writes these formats independently of the loaders; NULL for None."""
    table = pd.DataFrame({"id": range(len(texts)), "bo,dy": pd.Series(texts, dtype=object)})
    if path.suffix == ".txt":
        path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    elif path.suffix == ".csv":
        table.to_csv(path, index=False, quoting=csv.QUOTE_ALL)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    return {"source": path, "column": None if path.suffix == ".txt" else "bo,dy"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.data())
@settings(max_examples=40, deadline=None)
def test_texts_come_back_from_every_format_as_they_were(tmp_path_factory, suffix, content):
    texts = content.draw(st.lists(lines if suffix == ".txt" else unicode_text, min_size=1, max_size=8))
    loaded = data.load_texts(**write_texts(tmp_path_factory.mktemp("texts") / f"x{suffix}", texts))
    assert loaded.texts == texts
    assert (loaded.source.n_rows, loaded.source.n_skipped) == (len(texts), 0)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@given(texts=st.lists(st.one_of(unicode_text, st.sampled_from(["", " \t", None])), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_bad_rows_are_refused_or_counted_never_dropped(tmp_path_factory, suffix, texts):
    arguments = write_texts(tmp_path_factory.mktemp("texts") / f"x{suffix}", texts)
    good = [text for text in texts if text and text.strip()]
    n_bad = len(texts) - len(good)
    if n_bad:
        first = next(row for row, text in enumerate(texts, 1) if text not in good)
        with pytest.raises(data.DataError, match=rf"{n_bad} of {len(texts)} rows hold no text: row {first}: "):
            data.load_texts(**arguments)
    if good:
        loaded = data.load_texts(**arguments, on_bad="skip")
        assert loaded.texts == good
        assert loaded.source.n_skipped == n_bad


def test_equal_texts_from_two_formats_are_the_same_data(tmp_path):
    texts = ["one text", "another, with a comma"]
    sources = [data.load_texts(**write_texts(tmp_path / f"x{suffix}", texts)).source for suffix in SUFFIXES]
    assert len({source.sha256 for source in sources}) == 1
    other = data.load_texts(**write_texts(tmp_path / "other.txt", ["one texta", "nother, with a comma"]))
    assert other.source.sha256 != sources[0].sha256


def test_limit_reads_no_further(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n\ntwo\n\xff\n")  # two bad rows, the second one behind the limit
    loaded = data.load_texts(path, limit=2, on_bad="skip")
    assert loaded.texts == ["one", "two"]
    assert loaded.source.n_skipped == 1


def test_a_file_in_the_data_folder_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.load_texts("texts_sample.csv", column="body").source.n_rows == 200


HOSTILE_CSV = {
    "fields": (b"id,body\n1,a,b\n2\n3,good\n", r"2 of 3 rows .*row 1: '1,a,b' \(3 fields, expected 2\); row 2: '2' \(1 field,"),
    "invalid UTF-8": (b"id,body\n1,caf\xe9\n2,good\n", r"1 of 2 rows .*row 1: 'caf\\udce9' \(not UTF-8\)"),
    "fields and invalid UTF-8": (b"id,body\n1,\xff,\xfe\n2,good\n", "1 of 2 rows"),
    "blank line": (b"id,body\n\n2,good\n", r"1 of 2 rows .*row 1"),
    "control characters": (b"id,body\n1,\n2,\x1b[2J,\n3,good\n", r"row 2: '2,\\x1b\[2J,'"),
    "many": (b"id,body\n" + 1000 * b"1,\n" + b"2,good\n", "1000 of 1001 rows .* and 995 more"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE_CSV.values(), ids=HOSTILE_CSV)
def test_damaged_csv_rows(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.load_texts(path, column="body")
    assert data.load_texts(path, column="body", on_bad="skip").texts == ["good"]


def test_damaged_json_rows(tmp_path):
    rows = ['{"body": "good"}', '{"id": 1}', "[1]", "nope", '{"body": "\\ud800"}', '{"body": 1}', '{"body": null}', "[" * 9999]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(rows))
    with pytest.raises(data.DataError, match=r"7 of 8 rows .*row 2: NULL .*row 3: '\[1\]' \(not a JSON object\)"):
        data.load_texts(path, column="body")
    loaded = data.load_texts(path, column="body", on_bad="skip")
    assert loaded.texts == ["good"]
    assert loaded.source.n_skipped == 7


def test_damaged_parquet_rows(tmp_path):
    buffers = pa.array([b"good", b"\xff", None]).buffers()
    table = pa.table({"body": pa.Array.from_buffers(pa.string(), 3, buffers), "number": [1, 2, 3]})
    pq.write_table(table.append_column("kind", pa.array(["a", "b", "a"]).dictionary_encode()), tmp_path / "x.parquet")
    with pytest.raises(data.DataError, match=r"2 of 3 rows .*row 2: '\\udcff' \(not UTF-8\); row 3: NULL"):
        data.load_texts(tmp_path / "x.parquet", column="body")
    assert data.load_texts(tmp_path / "x.parquet", column="body", on_bad="skip").texts == ["good"]
    with pytest.raises(data.DataError, match=r"row 1: 1 \(int, not text\)"):
        data.load_texts(tmp_path / "x.parquet", column="number", on_bad="skip")
    assert data.load_texts(tmp_path / "x.parquet", column="kind").texts == ["a", "b", "a"]


def parquet_bytes():
    file = io.BytesIO()
    pd.DataFrame({"body": ["a", "b"]}).to_parquet(file)
    return file.getvalue()


HOSTILE_FILES = {
    "empty": ("x.csv", b"", "empty"),
    "header only": ("x.csv", b"id,body\n", "no rows"),
    "blank lines only": ("x.csv", b"\n", "has no column"),
    "open quote": ("x.csv", b'id,body\n1,"never closed\n2,x\n', "unexpected end of data at line 3"),
    "picture": ("x.csv", b"\x89PNG\r\n\x1a\n\0\0", "first line of 'x.csv' is not UTF-8"),
    "UTF-16": ("x.csv", "id,body\n1,x\n".encode("utf-16"), "not UTF-8"),
    "column twice": ("x.csv", b"body,body\n1,2\n", "2 columns called 'body'"),
    "truncated Parquet": ("x.parquet", parquet_bytes()[:-20], "cannot be read as Parquet"),
    "no Parquet": ("x.parquet", b"id,body\n1,x\n", "cannot be read as Parquet"),
    "no JSON at all": ("x.jsonl", b"id,body\n1,x\n", "no row is left"),
    "all rows bad": ("x.csv", b"id,body\n1,\n", "no row is left"),
    "wrong suffix": ("x.docx", b"x", r"'x\.docx': expected a file that ends with \.txt, \.csv"),
}


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE_FILES.values(), ids=HOSTILE_FILES)
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_files_without_texts(tmp_path, name, content, message, on_bad):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.load_texts(tmp_path / name, column="body", on_bad=on_bad)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ticket.csv", "there is no file 'ticket.csv'.*did you mean 'tickets.csv'"),
        ("", "source is ''"),
        (".", "is a folder"),
        ("\0", "there is no file"),
        ("x" * 5000, "cannot be opened"),
        ("~no-such-user/x.csv", "cannot be opened"),
    ],
)
def test_what_is_not_a_file(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").write_text("body\nx\n")
    with pytest.raises(data.DataError, match=message):
        data.load_texts(source)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_wrong_column_is_told_which_there_are(tmp_path, suffix):
    source = write_texts(tmp_path / f"it's {suffix}", ["a text"])["source"]
    with pytest.raises(data.DataError, match=r"has no column 'bo,di'; did you mean 'bo,dy'\?; its columns: 'id', 'bo,dy'"):
        data.load_texts(source, column="bo,di")
    with pytest.raises(
        data.DataError,
        match=r"which column\? Pass column= \(in a run, -p text_column= or series_column=\), one of: 'id', 'bo,dy'",
    ):
        data.load_texts(source)


def test_the_only_column_needs_no_name_and_plain_text_takes_none(tmp_path):
    (tmp_path / "x.csv").write_text("body\ngood\n")
    (tmp_path / "x.txt").write_text("good\n")
    assert data.load_texts(tmp_path / "x.csv").texts == data.load_texts(tmp_path / "x.txt").texts == ["good"]
    with pytest.raises(data.DataError, match="no column 'body'"):
        data.load_texts(tmp_path / "x.txt", column="body")


@pytest.mark.parametrize("delimiter", ";\t")
def test_csv_of_a_spreadsheet_that_writes_semicolons(tmp_path, delimiter):
    (tmp_path / "x.csv").write_bytes(f'\ufeffid{delimiter}body\r\n1{delimiter}"a, b{delimiter} ""c"""\r\n'.encode())
    assert data.load_texts(tmp_path / "x.csv", column="body").texts == [f'a, b{delimiter} "c"']


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": -1}, {"column": "body"}])
def test_arguments_that_the_corpus_refuses(arguments):
    with pytest.raises(data.DataError, match=r"^limit=|no column"):
        data.load_texts("builtin", **arguments)


def test_on_bad_is_one_of_two(tmp_path):
    (tmp_path / "x.txt").write_text("good\n")
    with pytest.raises(data.DataError, match="on_bad='ignore': expected 'raise' or 'skip'"):
        data.load_texts(tmp_path / "x.txt", on_bad="ignore")


# The built-in corpus -------------------------------------------------------------------------------------------------


def test_the_corpus_is_the_same_every_time_and_its_texts_are_distinct():
    first, again = data.load_texts("builtin", limit=300), data.load_texts(limit=300)
    assert first == again
    assert len(set(first.texts)) == first.source.n_rows == 300
    assert min(map(len, first.texts)) >= 40


def test_the_corpus_runs_nothing_and_loads_nothing():
    unwanted = {"this", "antigravity", "idlelib", "tensorflow", "keras", "sklearn", "pandas", "pyarrow"}
    code = (
        f"import sys; from altlas_lib import data; print(len(data.load_texts(limit=100).texts), *{unwanted} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("100\n", "")


LONG = "This docstring is long enough to be taken as a text"
SOURCE = f'''"{LONG}: a module."
raise SystemExit("it was run")

class A:
    "{LONG}: a class."
    async def f(self):
        \"\"\"{LONG}: a method.

        {LONG}:
          part two.
        \"\"\"
try:
    pass
except OSError:
    def f():
        "{LONG}: nested."
        "{LONG}, but it is none."
def g():
    "Too short."
'''


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Takes the place of the standard library and of the packages."""
    files = {
        "a.py": SOURCE,
        "sub/again.py": SOURCE,
        "escape.py": f'"{LONG}: \\d."',
        "broken.py": f'"{LONG}, but',
        "latin.py": f'"{LONG}, but caf\udce9"',
        "tests/t.py": f'"{LONG}: a test."',
        "site-packages/p.py": f'"{LONG}: of a package."',
        "notes.txt": LONG,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    monkeypatch.setattr(corpus, "_PACKAGES", ("no_such_package_at_all",))
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))


def test_what_the_corpus_takes_from_source_files(sources):
    method = f": a method.\n\n{LONG}:\n  part two."
    expected = {LONG + rest for rest in (": a module.", ": a class.", method, ": nested.", ": \\d.")}
    texts = data.load_texts().texts
    assert (set(texts), len(texts)) == (expected, 5)


def test_paragraphs_where_there_are_fewer_docstrings_than_asked_for(sources):
    assert any("\n\n" in text for text in data.load_texts(limit=5).texts)
    texts = data.load_texts(limit=6).texts
    assert {f"{LONG}: a method.", f"{LONG}:\n  part two."} < set(texts)
    assert len(set(texts)) == 6
    assert data.load_texts(limit=1000).source.n_rows == 6


# Vectors -------------------------------------------------------------------------------------------------------------

SMALL = ["the cat sat on the mat", "the cat and the dog and the cat", "a dog", "completely different words here", "cat dog"]


def plain_tfidf_cosine(texts):
    """From the formulas, in float64: (1 + ln tf) * (1 + ln((1 + n) / (1 + df)))."""
    words = [[word for word in text.lower().split() if len(word) > 1] for text in texts]
    vocabulary = sorted({word for row in words for word in row})
    tf = np.array([[row.count(word) for word in vocabulary] for row in words], dtype=np.float64)
    idf = 1 + np.log((1 + len(texts)) / (1 + (tf > 0).sum(axis=0)))
    weights = np.where(tf > 0, 1 + np.log(np.maximum(tf, 1)), 0) * idf
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ weights.T


@pytest.mark.parametrize(("method", "n_dimensions", "shape"), [("svd", 384, (5, 5)), ("hashing", 2**16, (5, 2**16))])
def test_without_loss_the_cosine_is_that_of_plain_tfidf(method, n_dimensions, shape):
    embedding = data.embed(SMALL, method=method, n_dimensions=n_dimensions)
    assert embedding.vectors.shape == shape
    assert embedding.vectors.dtype == np.float32
    np.testing.assert_allclose(embedding.vectors @ embedding.vectors.T, plain_tfidf_cosine(SMALL), atol=2e-6)


def test_what_a_reduction_does_to_similarity_is_as_the_docstring_says():
    texts = data.load_texts("texts_sample.csv", column="body").texts
    pairs = np.triu_indices(len(texts), 1)

    def similarities(method, n_dimensions):
        vectors = data.embed(texts, method=method, n_dimensions=n_dimensions).vectors
        return (vectors @ vectors.T)[pairs]

    plain = similarities("hashing", 2**16)
    reduced = similarities("svd", 24)
    assert (reduced - plain).mean() > 0.03
    assert (reduced >= 0.9).sum() > 1.5 * (plain >= 0.9).sum() > 0
    noise = similarities("hashing", 64) - plain
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1 / 8, rel=0.2)


@pytest.mark.parametrize("method", ["svd", "hashing"])
def test_vectors_repeat_and_have_length_1_or_0(method):
    texts = [*SMALL, "!?", "x", "  "]
    one, two = (data.embed(texts, method=method, n_dimensions=3) for _ in range(2))
    np.testing.assert_array_equal(one.vectors, two.vectors)
    np.testing.assert_allclose(np.linalg.norm(one.vectors, axis=1), [1, 1, 1, 1, 1, 0, 0, 0], atol=1e-6)
    assert one.n_zero_rows == 3


def test_vectors_have_384_dimensions_unless_asked_for_others():
    assert data.embed(SMALL, method="hashing").vectors.shape == (5, 384)


def test_a_text_in_dropped_directions_only_is_a_zero_row():
    embedding = data.embed(["cat dog"] * 9 + ["something else entirely"], n_dimensions=1)
    assert embedding.n_zero_rows == 1
    assert not embedding.vectors[9].any()


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        ([], {}, "texts is \\[\\]"),
        ("one text", {}, "texts is 'one text': expected a list"),
        (["!", "?"], {}, "none of the 2 texts has a word"),
        (SMALL, {"n_dimensions": 0}, "n_dimensions=0"),
        (SMALL, {"method": "bert"}, "method='bert': expected 'svd', 'hashing', a .npy matrix or a folder .* not downloaded"),
    ],
)
def test_embed_refuses(texts, arguments, message):
    with pytest.raises(data.DataError, match=message):
        data.embed(texts, **arguments)


def test_a_model_folder_needs_its_package(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="not downloaded"):
        data.embed(SMALL, method=tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        data.embed(SMALL, method=tmp_path)


def test_a_model_folder_is_loaded_from_this_machine_and_without_pickles(tmp_path, monkeypatch):
    calls = []

    class Model:
        def __init__(self, folder, **arguments):
            calls.append((folder, arguments))
            if (tmp_path / "damaged").exists():
                raise OSError("no file named model.safetensors")

        def encode(self, texts, **arguments):
            return np.eye(len(texts), 7)

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Model))
    (tmp_path / "modules.json").write_text("[]")
    embedding = data.embed(SMALL, method=str(tmp_path))
    assert embedding.vectors.shape == (5, 7)
    assert embedding.vectors.dtype == np.float32
    assert calls == [(str(tmp_path), {"local_files_only": True, "model_kwargs": {"use_safetensors": True}})]
    (tmp_path / "damaged").touch()
    with pytest.raises(data.DataError, match=r"no file named model\.safetensors"):
        data.embed(SMALL, method=tmp_path)


@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    dtype=st.sampled_from(["<f4", "<f8", ">f8"]),
)
@settings(max_examples=40, deadline=None)
def test_vectors_of_ones_own_come_back(tmp_path_factory, rows, dtype):
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, np.array(rows, dtype=dtype))
    embedding = data.load_embedding(path)
    np.testing.assert_array_equal(embedding.vectors, np.array(rows, dtype=np.float32))
    assert embedding.n_zero_rows == sum(not any(row) for row in rows)
    assert embedding.source.n_rows == len(rows)


HOSTILE_ARRAYS = {
    "NaN": (np.array([[1, 2], [3, np.nan]]), r"1 of 2 rows .*row 2: nan \(in column 2\).*none can be left out"),
    "too large for float32": (np.array([[1, 2], [1e300, 4]]), r"row 2: 1e\+300 \(in column 1\)"),
    "one axis": (np.ones(3), r"float64 of shape \(3,\): expected numbers with 2 axes"),
    "complex": (np.ones((2, 2), complex), "complex128"),
    "text": (np.array([["a"]]), "<U1"),
    "no rows": (np.ones((0, 3)), r"shape \(0, 3\)"),
    "objects": (np.array([[{}]]), "cannot be read as an array"),
}


def test_on_bad_is_checked_for_the_corpus_too():
    with pytest.raises(data.DataError, match="on_bad='maybe': expected 'raise' or 'skip'"):
        data.load_texts("builtin", limit=3, on_bad="maybe")


def test_embed_takes_a_given_matrix_of_one_row_per_text(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", matrix)
    embedding = data.embed(["a", "b", "c"], method=str(tmp_path / "v.npy"))
    np.testing.assert_array_equal(embedding.vectors, matrix)
    assert embedding.method == "given, v.npy"
    with pytest.raises(data.DataError, match=r"'v\.npy' has 3 rows for 2 texts: expected one per text"):
        data.embed(["a", "b"], method=tmp_path / "v.npy")
    with pytest.raises(data.DataError, match="there is no file"):
        data.embed(["a", "b"], method=tmp_path / "w.npy")


@pytest.mark.parametrize(("array", "message"), HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_load_embedding_refuses(tmp_path, array, message):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(data.DataError, match=message):
        data.load_embedding(tmp_path / "v.npy")


def test_the_sample_read_by_the_standard_library(tmp_path):
    with open(paths.data_dir() / "texts_sample.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    loaded = data.load_texts("texts_sample.csv", column="body")
    assert loaded.texts == [row["body"] for row in rows]
    assert loaded.source.n_rows == 200
