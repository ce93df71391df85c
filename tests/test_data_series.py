"""Series from files, what bad input gets, and the generated series against its own odds."""

import contextlib
import importlib.util
import re
import sqlite3
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from altlas_lib import data, paths

finite = st.floats(allow_nan=False, allow_infinity=False)
cells = st.one_of(
    finite, st.integers(-(10**9), 10**9), st.sampled_from([None, float("inf"), "1.23\u20284.56", "", "x", b"\xff"])
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def write_sqlite(path, values, table="rounds", column="multiplier", declared=""):
    def quoted(name):
        return '"' + name.replace('"', '""') + '"'

    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE {quoted(table)} ({quoted(column)} {declared})")
        connection.executemany(f"INSERT INTO {quoted(table)} VALUES (?)", [(value,) for value in values])
    return path


def write_series(path, values):
    if path.suffix == ".npy":
        np.save(path, np.array(values))
    elif path.suffix == ".csv":
        pd.DataFrame({"multiplier": values}).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame({"multiplier": values}).to_parquet(path)
    else:
        write_sqlite(path, values)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".sqlite", ".db"])
@given(values=st.lists(finite, min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_series_comes_back_from_every_format_to_the_last_bit(tmp_path_factory, suffix, values):
    path = write_series(tmp_path_factory.mktemp("series") / f"x{suffix}", values)
    series = data.load_series(path)
    assert series.values.dtype == np.float64
    np.testing.assert_array_equal(series.values, np.array(values))
    assert (series.source.name, series.source.n_rows, series.source.n_skipped) == (path.name, len(values), 0)


def test_equal_values_from_two_formats_are_the_same_data(tmp_path):
    values = [1.5, 2.0, 1.0]
    sources = [data.load_series(write_series(tmp_path / f"x{suffix}", values)).source for suffix in (".csv", ".npy", ".db")]
    assert len({source.sha256 for source in sources}) == 1
    assert data.load_series(write_series(tmp_path / "y.csv", [2.0, 1.5, 1.0])).source.sha256 != sources[0].sha256


@given(values=st.lists(cells, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_bad_rows_are_refused_or_counted_never_guessed(tmp_path_factory, values):
    path = write_sqlite(tmp_path_factory.mktemp("series") / "x.db", values)
    good = [float(value) for value in values if isinstance(value, int | float) and np.isfinite(value)]
    n_bad = len(values) - len(good)
    if n_bad:
        first = next(row for row, v in enumerate(values, 1) if not (isinstance(v, int | float) and np.isfinite(v)))
        with pytest.raises(data.DataError, match=rf"{n_bad} of {len(values)} rows hold no finite number: row {first}: "):
            data.load_series(path)
    if good:
        series = data.load_series(path, on_bad="skip")
        assert series.values.tolist() == good
        assert series.source.n_skipped == n_bad


# SQLite --------------------------------------------------------------------------------------------------------------


@given(table=names, column=names)
@example(table="ro\"und's; DROP TABLE x; --", column="mul\"ti'plier ?")
@settings(max_examples=60, deadline=None)
def test_any_name_is_quoted_right(tmp_path_factory, table, column):
    if table.lower().startswith("sqlite_"):
        table = f"x{table}"
    path = tmp_path_factory.mktemp("series") / "it's 100% ?x=1#.db"
    write_sqlite(path, [1.5], table, column)
    before = path.read_bytes()
    assert data.load_series(path, table=table, column=column).values.tolist() == [1.5]
    assert path.read_bytes() == before


@pytest.fixture
def game(tmp_path):
    """A database as an application would have it: keys, other columns, an index, a view."""
    path = tmp_path / "game.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE rounds (id INTEGER PRIMARY KEY, played_at TEXT, multiplier DECIMAL(10, 2))")
        rows = [(3, "c", 3.5), (1, "a", 9.25), (2, "b", "1.5")]
        connection.executemany("INSERT INTO rounds VALUES (?, ?, ?)", rows)
        connection.execute("CREATE INDEX by_multiplier ON rounds (multiplier)")
        connection.execute("CREATE VIEW high AS SELECT multiplier FROM rounds WHERE multiplier > 2")
        connection.execute("CREATE TABLE keyed (name TEXT PRIMARY KEY, x REAL, y REAL) WITHOUT ROWID")
        connection.executemany("INSERT INTO keyed VALUES (?, ?, ?)", [("b", 1, 4), ("a", 2, 3)])
        connection.execute("CREATE INDEX by_x ON keyed (x)")
        for table, columns in {"odd": "rowid, oid", "odder": "rowid, oid, _rowid_"}.items():
            connection.execute(f"CREATE TABLE {table} ({columns})")
            connection.executemany(f"INSERT INTO {table} (rowid, oid) VALUES (?, ?)", [(3, 1), (1, 2), (2, 0)])
            connection.execute(f"CREATE INDEX by_{table} ON {table} (rowid)")
    return path


def test_rows_come_in_the_order_of_the_table_not_of_an_index(game):
    assert data.load_series(game, table="rounds").values.tolist() == [9.25, 1.5, 3.5]
    assert data.load_series(game, table="keyed", column="x").values.tolist() == [2, 1]
    for table in ("odd", "odder"):
        assert data.load_series(game, table=table, column="rowid").values.tolist() == [3, 1, 2]


def test_a_database_of_many_rows_is_read_to_its_end(tmp_path):
    values = 1 + np.arange(90_000) % 900 / 100
    assert np.array_equal(data.load_series(write_sqlite(tmp_path / "x.db", values.tolist())).values, values)


def test_a_view_is_read_like_a_table(game):
    assert sorted(data.load_series(game, table="high").values) == [3.5, 9.25]


def test_names_are_checked_against_what_the_database_has(game):
    with pytest.raises(data.DataError, match=r"which table.* 'rounds', 'high', 'keyed', 'odd', 'odder'"):
        data.load_series(game)
    with pytest.raises(data.DataError, match="no table 'Rounds'; did you mean 'rounds'"):
        data.load_series(game, table="Rounds")
    with pytest.raises(data.DataError, match="no table 'sqlite_master'"):
        data.load_series(game, table="sqlite_master")
    with pytest.raises(data.DataError, match=r"which column.* 'name', 'x', 'y'"):
        data.load_series(game, table="keyed")
    with pytest.raises(
        data.DataError, match=r"table 'rounds' of 'game\.db' has no column 'multiplyer'; did you mean 'multiplier'"
    ):
        data.load_series(game, table="rounds", column="multiplyer")


def test_the_damaged_sample():
    with pytest.raises(data.DataError) as caught:
        data.load_series("crash_export_damaged.sqlite")
    for part in ("4 of 2000 rows", r"row 17: '1.23\u20284.56'", "row 42: inf", "row 43: NULL", r"row 77: '2.05\u20281.00'"):
        assert part in str(caught.value)
    series = data.load_series("crash_export_damaged.sqlite", on_bad="skip")
    assert (len(series.values), series.source.n_rows, series.source.n_skipped) == (1996, 1996, 4)


# Other formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1.23", "+.5", "-4e5", "7.", " 12 ", "1E-3", "007"])
def test_text_that_is_one_number_is_taken(tmp_path, text):
    (tmp_path / "x.csv").write_text(f"x,note\n{text},a\n")
    assert data.load_series(tmp_path / "x.csv", column="x").values.tolist() == [float(text)]


NO_NUMBERS = [
    "nan",
    "inf",
    "-Infinity",
    "1_000",
    "0x10",
    "1 2",
    "1.2.3",
    "1.23\u20284.56",
    "１",
    "true",
    "1e",
    ".",
    "1e999",
    '"1,5"',
    "",
]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_other_text_is_not(tmp_path, text):
    (tmp_path / "x.csv").write_text(f"x,note\n1.5,a\n{text},b\n", encoding="utf-8")
    with pytest.raises(data.DataError, match=r"1 of 2 rows .*row 2"):
        data.load_series(tmp_path / "x.csv", column="x")
    assert data.load_series(tmp_path / "x.csv", column="x", on_bad="skip").values.tolist() == [1.5]


HUGE_CELLS = {
    "digits": 10**6 * "1" + "x",
    "blanks": 10**6 * " " + "x",
    "decimals": "1." + 10**6 * "1" + "e",
    "beyond float64": 10**6 * "1",
}


@pytest.mark.parametrize("cell", HUGE_CELLS.values(), ids=HUGE_CELLS)
def test_a_huge_cell_is_refused_at_once(tmp_path, cell):
    """Not after the hours that a backtracking regular expression takes for the square of a million: the test would time out."""
    (tmp_path / "x.csv").write_text(f"x\n1.5\n{cell}\n")
    assert data.load_series(tmp_path / "x.csv", on_bad="skip").values.tolist() == [1.5]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".sqlite"])
def test_values_below_the_minimum_are_bad_rows(tmp_path, suffix):
    path = write_series(tmp_path / f"x{suffix}", [1.5, 0.99, 0.0, 1.0, -1.0, 7.0])
    assert len(data.load_series(path).values) == 6
    first = r"row 2: '?0\.99'? \(below 1\); row 3: '?0\.0'? \(below 1\); row 5: '?-1\.0'? \(below 1\)"  # text in a CSV
    with pytest.raises(data.DataError, match=rf"3 of 6 rows hold no finite number of 1 or more: {first}\. Next: .*skip"):
        data.load_series(path, minimum=1.0)
    series = data.load_series(path, minimum=1.0, on_bad="skip")
    assert series.values.tolist() == [1.5, 1.0, 7.0]
    assert (series.source.n_rows, series.source.n_skipped) == (3, 3)
    with pytest.raises(data.DataError, match=r"6 of 6 rows .*no row is left"):
        data.load_series(path, minimum=7.5, on_bad="skip")


def test_the_only_numeric_column_needs_no_name(tmp_path):
    table = pd.DataFrame({"when": ["a", "b"], "x": [1.5, None]})
    table.to_csv(tmp_path / "x.csv", index=False)
    table.to_parquet(tmp_path / "x.parquet")
    for suffix in (".csv", ".parquet"):
        with pytest.raises(data.DataError, match="1 of 2 rows"):
            data.load_series(tmp_path / f"x{suffix}")
        assert data.load_series(tmp_path / f"x{suffix}", on_bad="skip").source.n_skipped == 1
        table.assign(y=1).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(
        data.DataError,
        match=r"which column\? Pass column= \(in a run, -p text_column= or series_column=\), one of: 'when', 'x', 'y'",
    ):
        data.load_series(tmp_path / "two.csv")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("flag", "row 1: True .a truth value"),
        ("when", "datetime, not a number"),
        ("text", "row 1: 'x' .not one number"),
        ("nothing", "row 1: NULL"),
        ("list", "list, not a number"),
    ],
)
def test_parquet_columns_without_numbers(tmp_path, column, message):
    columns = {"flag": [True], "when": [datetime(2026, 1, 1)], "text": ["x"], "nothing": [None], "list": [[1.0]]}
    pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(data.DataError, match=message):
        data.load_series(tmp_path / "x.parquet", column=column, on_bad="skip")


HOSTILE_ARRAYS = {
    "two axes": (np.ones((3, 2)), r"float64 of shape \(3, 2\): expected numbers with 1 axis"),
    "complex": (np.ones(3, complex), "complex128"),
    "truth values": (np.ones(3, bool), "bool"),
    "text": (np.array(["1"]), "<U1"),
    "records": (np.zeros(3, "f8,f8"), "expected numbers"),
    "empty": (np.array([]), "no rows"),
    "NaN and infinity": (np.array([1, np.nan, -np.inf]), "2 of 3 rows .*row 2: nan .*row 3: -inf"),
    "objects": (np.array([{}]), "cannot be read as an array"),
}


@pytest.mark.parametrize(("array", "message"), HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_arrays_that_are_no_series(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(data.DataError, match=message):
        data.load_series(tmp_path / "x.npy")


def npy_header(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


HOSTILE_FILES = {
    "empty": ("x.npy", b"", "empty"),
    "an 8 PB header": ("x.npy", npy_header("(10**15,)").replace(b"10**15", b"1" + 15 * b"0") + bytes(80), "cannot be read"),
    "a shape beyond 64 bits": ("x.npy", npy_header(f"({10**30},)") + bytes(80), "cannot be read as an array"),
    "a shape that is a truth value": ("x.npy", npy_header("(True,)") + bytes(80), "cannot be read as an array"),
    "a header that exhausts the parser": ("x.npy", npy_header("-" * 9000 + "1") + bytes(80), "cannot be read as an array"),
    "truncated array": ("x.npy", npy_header("(3,)") + bytes(16), "cannot be read"),
    "pickle": ("x.npy", b"\x80\x04\x95\x06\x00\x00\x00\x00", "cannot be read"),
    "archive": ("x.npy", b"PK\x03\x04", "cannot be read"),
    "no database": ("x.db", b"no database at all" * 100, "file is not a database"),
    "truncated database": ("x.db", b"SQLite format 3\x00" + bytes(100), "cannot be read as a SQLite database"),
    "no CSV": ("x.csv", b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    "no Parquet": ("x.parquet", b"PAR1", "cannot be read as Parquet"),
    "wrong suffix": ("x.xlsx", b"x", r"expected a file that ends with \.csv, \.parquet, \.npy, \.sqlite"),
}


@pytest.mark.parametrize(("name", "content", "message"), HOSTILE_FILES.values(), ids=HOSTILE_FILES)
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_files_without_a_series(tmp_path, name, content, message, on_bad):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.load_series(tmp_path / name, on_bad=on_bad)


def test_a_database_without_tables_a_folder_and_names_where_there_are_none(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(data.DataError, match="has no table"):
        data.load_series(tmp_path / "x.db")
    with pytest.raises(data.DataError, match="is a folder"):
        data.load_series(tmp_path)
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(data.DataError, match="no table 't'"):
        data.load_series(tmp_path / "x.npy", table="t")
    with pytest.raises(data.DataError, match="no column 'c'"):
        data.load_series(tmp_path / "x.npy", column="c")


# The generated series ------------------------------------------------------------------------------------------------

STRENGTHS = [0.0, 0.5, 0.9]


def fair_survival(x):
    return np.where(x > 1, 0.97 / x, 1.0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("position", [0, 45, 59])
def test_each_value_by_itself_has_fair_odds_at_any_strength(strength, position):
    """One value from each of many games, so that they are independent: the Dvoretzky-Kiefer-Wolfowitz bound at one in 10^9."""
    values = np.array([data.crash_series(60, regime_strength=strength, seed=seed).values[position] for seed in range(3000)])
    x = np.arange(100, 20_001) / 100
    survival = 1 - np.searchsorted(np.sort(values), x - 1e-9) / len(values)
    assert np.abs(survival - fair_survival(x)).max() < np.sqrt(np.log(2e9) / (2 * len(values)))


def test_values_are_multipliers_of_two_decimals_and_repeat():
    series = data.crash_series(5000, regime_strength=0.5, seed=3)
    assert series.values.min() == 1.0
    assert [float(f"{value:.2f}") for value in series.values] == series.values.tolist()
    np.testing.assert_array_equal(series.values, data.crash_series(5000, regime_strength=0.5, seed=3).values)
    assert (series.values != data.crash_series(5000, regime_strength=0.5, seed=4).values).any()
    assert data.crash_series(5).source.name.endswith("fair odds, in which there is nothing to learn")
    np.testing.assert_array_equal(series.values[:999], data.crash_series(999, regime_strength=0.5, seed=3).values)
    assert (
        series.source.name
        == "crash_series(n=5000, regime_strength=0.5, seed=3), a generated game with a planted, learnable regime"
    )


def autocorrelations(values, lags):
    ranks = np.argsort(np.argsort(values, kind="stable")).astype(float)
    ranks = (ranks - ranks.mean()) / ranks.std()
    return np.array([(ranks[:-lag] * ranks[lag:]).mean() for lag in lags])


def test_the_fair_game_has_no_memory_and_a_regime_has():
    n, lags = 20_000, range(1, 61)
    bound = 5 / np.sqrt(n)
    assert np.abs(autocorrelations(data.crash_series(n, seed=1).values, lags)).max() < bound
    assert np.abs(autocorrelations(data.crash_series(n, seed=1, regime_strength=0.9).values, lags)).max() > 5 * bound


@pytest.mark.parametrize("strength", [0.3, 0.99])
def test_the_odds_follow_from_the_values_seen_and_never_settle(strength):
    series = data.crash_series(5000, regime_strength=strength, seed=2)
    n_high = np.lib.stride_tricks.sliding_window_view(series.values >= 1.94, 21).sum(axis=1)  # values 11 to 31 rounds back
    expected = np.where(n_high[:-10] > 10, 1 - strength, 1 + strength)[:-1] / 2
    np.testing.assert_array_equal(series.high_probability[31:], expected)
    assert (series.high_probability[:31] == 0.5).all()
    assert np.diff(np.flatnonzero(np.diff(series.high_probability))).max() < 100


@pytest.mark.parametrize("strength", STRENGTHS)
def test_survival_is_what_is_seen_under_the_same_odds(strength):
    series = data.crash_series(50_000, regime_strength=strength, seed=5)
    for p in np.unique(series.high_probability):
        seen = series.values[series.high_probability == p]
        bound = np.sqrt(np.log(2e9) / (2 * len(seen)))  # Hoeffding
        for x in (0.5, 1.0, 1.01, 1.5, 1.504, 1.94, 3.0, 10.0, 200.0):
            truth = series.survival(x)[series.high_probability == p]
            assert abs((seen >= x).mean() - truth[0]) < bound


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_best_possible_scores_are_those_of_the_bayes_rule(strength):
    series = data.crash_series(50_000, regime_strength=strength, seed=7)
    part = slice(10_000, None)
    values, best = series.values[part], series.best_possible(part)
    bound = np.sqrt(np.log(2e9) / (2 * len(values)))
    low, high = (series.survival(x)[part] for x in (1.5, 10.0))

    right = (values >= 1.5) == (low >= 0.5)
    assert abs(right.mean() - best["threshold_accuracy"]) < bound

    classes = np.digitize(values, [1.5, 10.0])
    assert abs((classes == np.argmax([1 - low, low - high, high], axis=0)).mean() - best["class_accuracy"]) < bound

    # The conditional median is not asked of the library: it is that of the values drawn with the same odds.
    logs, odds = np.log(values), series.high_probability[part]
    errors = np.empty(len(logs))
    for p in np.unique(odds):
        errors[odds == p] = np.abs(logs[odds == p] - np.median(logs[odds == p]))
    assert abs(errors.mean() - best["log_mean_absolute_error"]) < 6 * errors.std() / np.sqrt(len(errors))


def test_the_best_for_the_fair_game_is_the_best_constant():
    best = data.crash_series(100).best_possible()
    assert best["threshold_accuracy"] == pytest.approx(0.97 / 1.5)
    assert best["class_accuracy"] == pytest.approx(0.97 / 1.5 - 0.097)
    values = np.maximum(1, np.floor(97 / np.random.default_rng(0).uniform(size=1_000_000)) / 100)
    errors = np.abs(np.log(values / np.median(values)))
    assert best["log_mean_absolute_error"] == pytest.approx(errors.mean(), abs=6 * errors.std() / 1000)


def test_more_strength_can_be_forecast_better():
    best = pd.DataFrame([data.crash_series(3000, regime_strength=s).best_possible() for s in (0, 0.3, 0.6, 0.9)])
    assert best["threshold_accuracy"].is_monotonic_increasing
    assert best["class_accuracy"].is_monotonic_increasing
    assert best["log_mean_absolute_error"].is_monotonic_decreasing


@pytest.mark.parametrize(("strength", "learned"), [(0.0, False), (0.8, True)])
def test_a_simple_model_learns_the_regime_from_50_values_and_nothing_from_the_fair_game(strength, learned):
    series = data.crash_series(9000, regime_strength=strength, seed=11)
    windows = np.lib.stride_tricks.sliding_window_view(np.minimum(np.log(series.values), 1.5), 50)[:-1]
    answers = series.values[50:] >= 1.5
    model = LogisticRegression(C=0.1).fit(windows[:6000], answers[:6000])
    accuracy = model.score(windows[6000:], answers[6000:])
    base, best = answers[6000:].mean(), series.best_possible(slice(6050, None))["threshold_accuracy"]
    if learned:
        assert accuracy > base + 0.5 * (best - base)
    else:
        assert accuracy < base + 0.01


@pytest.mark.parametrize(
    "arguments", [{"n": 0}, {"n": 5, "regime_strength": 1.0}, {"n": 5, "regime_strength": np.nan}, {"n": 5, "seed": -1}]
)
def test_arguments_that_the_generator_refuses(arguments):
    with pytest.raises(data.DataError, match="expected n >= 1, 0 <= regime_strength < 1, seed >= 0"):
        data.crash_series(**arguments)


def test_an_empty_part_has_no_best_score():
    with pytest.raises(data.DataError, match=re.escape("part=slice(10, None, None) holds none of the 10 values")):
        data.crash_series(10).best_possible(slice(10, None))


def test_the_samples_are_what_their_script_writes(tmp_path):
    spec = importlib.util.spec_from_file_location("regenerate", paths.data_dir() / "regenerate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    assert (tmp_path / "crash_multipliers.csv").read_bytes() == (paths.data_dir() / "crash_multipliers.csv").read_bytes()
    written, shipped = (
        data.load_series(folder / "crash_export_damaged.sqlite", on_bad="skip").source
        for folder in (tmp_path, paths.data_dir())
    )
    assert written == shipped
