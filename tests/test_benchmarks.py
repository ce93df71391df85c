import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from altlas_lib import paths, similarity
from altlas_lib.results import Provenance
from benchmarks import contest, inputs, peers, records, show, worker
from benchmarks import similarity as benchmark


def installed(kind):
    return [c for c in peers.CONTESTANTS.values() if c.kind == kind and not c.on_gpu and not c.missing_modules]


def hostile(n=60, d=7):
    """Duplicates among noise: the row itself is not always its own first neighbour."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d), dtype=np.float32)[rng.integers(n, size=n)]


def checked(X, k, answer):
    rows = np.arange(len(X))
    indices, scores = (np.asarray(part) for part in answer)
    return contest.exactness(X, rows, indices, scores, similarity.reference(X, k, rows=rows))


# The contestants and their check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("contestant", installed("peer"), ids=lambda contestant: contestant.name)
@pytest.mark.parametrize("name", inputs.INPUTS)
def test_every_installed_peer_gives_the_exact_answer(contestant, name):
    X, k = inputs.INPUTS[name](np.random.default_rng(0), 60, 12), 5
    assert X.dtype == np.float32
    found = checked(X, k, contestant.answer(contestant.prepare(1)(X, k), k))
    assert found.n_wrong == 0
    assert found.largest_error < 1e-5  # scikit-learn's distances cancel where scores are near 1


def test_the_tiles_of_the_gpu_contestants_on_the_cpu():
    X = hostile()
    found = checked(X, 5, peers.tiled_argpartition(np, X, 5, n_rows=17))
    assert (found.n_wrong, found.largest_error < 1e-6) == (0, True)
    torch = pytest.importorskip("torch")
    found = checked(X, 5, peers.tiled_topk(torch, X, 5, "cpu", n_rows=17))
    assert (found.n_wrong, found.largest_error < 1e-6) == (0, True)


@pytest.mark.parametrize("contestant", installed("bound") + installed("product"), ids=lambda contestant: contestant.name)
def test_bounds_multiply_what_they_say(contestant, monkeypatch):
    n, n_flops = 1000, []
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: n_flops.append(a.shape[0] * b.shape[1]) or matmul(a, b, out=out))
    contestant.prepare(1)(hostile(n, 3), 5)
    if contestant.kind == "product":
        assert sum(n_flops) == n * n
    else:
        assert n * (n + 1) / 2 <= sum(n_flops) < n * n


def test_pairs_become_neighbours():
    indices, scores = peers.of_pairs([[0.9, 0, 2], [0.5, 1, 2], [0.1, 0, 1]], 2)
    assert indices.tolist() == [[2, 1], [2, 0], [0, 1]]
    assert scores.tolist() == [[0.9, 0.1], [0.5, 0.1], [0.9, 0.5]]


def test_the_row_itself_is_left_out_wherever_it_stands():
    indices, scores = peers.without_self(np.array([[0, 1, 2], [0, 1, 2], [0, 1, 3]]), np.array([[3, 2, 1]] * 3), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert scores.tolist() == [[2, 1], [3, 1], [3, 2]]


@pytest.mark.parametrize(
    ("change", "n_wrong", "error"),
    [
        (lambda indices, scores: None, 0, 0),
        (lambda indices, scores: indices.__setitem__((3, 1), 3), 1, None),  # itself
        (lambda indices, scores: indices.__setitem__((3, 1), -1), 1, None),
        (lambda indices, scores: indices.__setitem__((3, 1), indices[3, 0]), 1, None),  # named twice
        (lambda indices, scores: scores.__setitem__((3, 1), scores[3, 1] - 0.01), 0, 0.01),
        (lambda indices, scores: scores.__setitem__((3, 1), np.nan), 0, 2),
    ],
)
def test_a_wrong_answer_is_seen(change, n_wrong, error):
    X = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    expected = similarity.reference(X, 4)
    indices, scores = expected.indices.copy(), expected.scores.copy()
    change(indices, scores)
    found = contest.exactness(X, np.arange(30), indices, scores, expected)
    assert found.n_wrong == n_wrong
    if error is not None:
        assert found.largest_error == pytest.approx(error, abs=1e-6)
    with pytest.raises(ValueError, match=r"shapes \(30, 3\)"):
        contest.exactness(X, np.arange(30), indices[:, :3], scores[:, :3], expected)


def test_a_neighbour_that_is_too_far_is_wrong():
    X = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    fifth = similarity.reference(X, 5)
    found = contest.exactness(X, np.arange(30), fifth.indices[:, 1:], fifth.scores[:, 1:], similarity.reference(X, 4))
    assert found.n_wrong == 30
    assert found.largest_error > 0.01


# The process of a contestant -----------------------------------------------------------------------------------------


def start(tmp_path, name="scikit-learn cosine", n=500, k=3, timeout_s=60):
    np.save(tmp_path / "rows.npy", hostile(n))
    return worker.Worker(name, tmp_path / "rows.npy", k, np.array([0, 7]), n_threads=1, environment={}, timeout_s=timeout_s)


def test_a_worker_measures_a_process_of_its_own(tmp_path):
    with start(tmp_path) as process:
        warm_up, sample = process.warm_up(), process.sample()
    assert warm_up.indices.shape == warm_up.scores.shape == (2, 3)
    assert 0 < sample.wall_s < 60
    assert 0 < sample.cpu_s < 60
    assert warm_up.peak_bytes is None or warm_up.peak_bytes >= 0
    assert process._process.poll() is not None


def test_peak_memory_holds_what_the_call_allocated(tmp_path):
    """scikit-learn's cosine distances take the whole matrix at this size."""
    with start(tmp_path, n=3000) as process:
        peak_bytes = process.warm_up().peak_bytes
    if peak_bytes is None:
        pytest.skip("this kernel does not tell a process's peak memory")
    assert 4 * 3000**2 <= peak_bytes < 20 * 3000**2


def test_what_fails_in_a_worker_arrives_in_words(tmp_path):
    with start(tmp_path, n=4, k=10) as process, pytest.raises(worker.WorkerError, match="ValueError: Expected n_neighbors"):
        process.warm_up()


def test_a_worker_that_hangs_is_ended(tmp_path):
    with start(tmp_path, timeout_s=0) as process:
        with pytest.raises(worker.WorkerError, match="no answer after 0 s"):
            process.warm_up()
        assert process._process.poll() is not None


def test_a_worker_that_dies_is_named(tmp_path):
    with start(tmp_path) as process:
        process.warm_up()
        process._process.kill()
        process._process.wait()
        with pytest.raises(worker.WorkerError, match="ended with code -9"):
            process.sample()


def test_settings_of_the_shell_reach_no_worker(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert worker.inherited_settings().items() >= {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "7"}.items()
    environment = worker.worker_environment(2, {"OPENBLAS_CORETYPE": "Zen"})
    assert {name: environment[name] for name in ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS")} == {
        "OPENBLAS_CORETYPE": "Zen",
        "OMP_NUM_THREADS": "2",
    }
    assert "OPENBLAS_CORETYPE" not in worker.worker_environment(2, {})


# Cases, ratios, table ------------------------------------------------------------------------------------------------


def test_cases():
    chosen = benchmark.cases(["gaussian", "drift"], [30_000, 1000, 100_000, 10_000], [10, 100], 384)
    assert [(case.input, case.n, case.k) for case in chosen] == [
        *(("gaussian", n, 10) for n in (1000, 10_000, 30_000, 100_000)),
        *(("gaussian", n, 100) for n in (10_000, 30_000)),
        ("drift", 10_000, 10),
    ]
    with pytest.raises(ValueError, match="11 rows with k=10"):
        benchmark.cases(["gaussian"], [11], [10], 3)


def test_a_contestant_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="contestant 'fais2': expected a part of one of these names: ours, auto;"):
        benchmark.select(["fais2"])
    assert [contestant.name for contestant in benchmark.select(["FAISS"])] == ["faiss knn"]


def test_rounds_begin_one_later_each_time():
    assert [contest.rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert contest.rotated([], 3) == []


def measurement(contestant, kind, cpu_s, *, on_gpu=False, **more):
    case = records.Case(input="gaussian", n=1000, d=384, k=10)
    wall_s = [seconds / 2 for seconds in cpu_s]
    return records.Measurement(case=case, contestant=contestant, kind=kind, on_gpu=on_gpu, cpu_s=cpu_s, wall_s=wall_s, **more)


@pytest.fixture
def record():
    return records.Record(
        provenance=Provenance.now({"sizes": [1000]}),
        n_threads=2,
        ignored_environment={},
        measurements=[
            measurement("slow", "peer", [9.0, 4.0, 5.0]),
            measurement("fast", "peer", [2.0, 2.1, 30.0]),
            measurement("ours, auto", "ours", [0.6, 0.5, 0.7], peak_bytes=2**20),
            measurement("half", "bound", [1.2, 1.2, 1.2]),
            measurement("peer, GPU", "peer", [8.0], on_gpu=True),
            measurement("ours, GPU", "ours", [4.0], on_gpu=True),
            measurement("absent", "peer", [], skipped="not installed: absent"),
        ],
    )


def test_ratios_are_of_medians_and_of_the_same_kind_of_device(record):
    measured = record.of(record.cases[0])
    of = {measurement.contestant: measurement for measurement in measured}
    assert [m.contestant for m in measured] == ["ours, auto", "half", "fast", "slow", "ours, GPU", "peer, GPU"]
    assert records.best(measured, "peer") is of["fast"]
    assert records.speedup(of["ours, auto"], measured) == pytest.approx(2.1 / 0.6)
    assert records.speedup(of["slow"], measured) == pytest.approx(2.1 / 5)
    assert records.speedup(of["ours, GPU"], measured) == pytest.approx(2)
    assert records.share_of_bound(of["ours, auto"], measured) == pytest.approx(2)
    assert records.share_of_bound(of["fast"], measured) == pytest.approx(1.2 / 2.1)
    assert records.share_of_bound(of["ours, GPU"], measured) is None
    assert records.speedup(of["half"], measured) is None


def test_the_table_and_the_figure(record, tmp_path):
    lines = show.table(record).splitlines()
    ours = next(line for line in lines if line.startswith("ours, auto"))
    assert ours.split("  ")[0] == "ours, auto"
    assert all(text in ours for text in ("600 ms", "500 ms", "700 ms", "300 ms", "1 MiB", "3.50", "200%"))
    assert "skipped: absent: not installed: absent" in lines
    show.figure(record, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    skipped = record.model_copy(update={"measurements": record.measurements[-1:]})
    with pytest.raises(ValueError, match="nothing was measured"):
        show.figure(skipped, tmp_path / "none.png")
    assert "not installed" in show.table(skipped)
    assert "CAUTION" not in show.table(record)
    busy = [m.model_copy(update={"others_busy": 0.4}) for m in record.measurements]
    assert "CAUTION: other programs used 40% of the CPUs" in show.table(record.model_copy(update={"measurements": busy}))


def test_a_measurement_has_samples_or_a_reason():
    for more in ({"cpu_s": []}, {"cpu_s": [1.0], "skipped": "too slow"}):
        with pytest.raises(ValidationError, match="samples or a reason"):
            measurement("faiss", "peer", **more)


# The whole script ----------------------------------------------------------------------------------------------------


def run_script(*arguments):
    command = [sys.executable, "-m", "benchmarks.similarity", *map(str, arguments)]
    return subprocess.run(command, cwd=paths.project_root(), capture_output=True, text=True, timeout=280)


def test_a_run_writes_samples_ratios_and_exactness(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setattr("benchmarks.contest.core_types", lambda: [])
    output, names = tmp_path / "new" / "record.json", ["scikit-learn cosine", "faiss", "half product, tiles of 256"]
    sizes = ["--sizes", 200, "--k", 10, "--inputs", "gaussian", "duplicates", "--repeats", 1, "--threads", 1]
    benchmark.main([*map(str, sizes), "--contestants", *names, "--output", str(output)])
    record = records.Record.model_validate_json(output.read_text())
    assert record.ignored_environment["OPENBLAS_CORETYPE"] == "Haswell"
    assert {"numpy", "scikit-learn"} <= record.provenance.versions.keys()
    assert [case.input for case in record.cases] == ["gaussian", "duplicates"]
    for case in record.cases:
        measured = {measurement.contestant: measurement for measurement in record.of(case)}
        sklearn = measured["scikit-learn cosine"]
        assert len(sklearn.cpu_s) == 1
        assert (sklearn.exactness.n_rows, sklearn.exactness.n_wrong) == (200, 0)
        assert measured["half product, tiles of 256"].exactness is None
        missing = {measurement.contestant: measurement.skipped for measurement in record.of(case, skipped=True)}
        assert ("faiss knn" in measured) != (missing.get("faiss knn") == "not installed: faiss")
    shown = run_script("--show", output, "--figure", tmp_path / "figure.png")
    assert "scikit-learn cosine" in shown.stdout
    assert (tmp_path / "figure.png").exists()


def test_who_would_take_too_long_is_skipped_in_words(tmp_path):
    entrant = contest.Contest([peers.CONTESTANTS["usearch exact"]], tmp_path, n_threads=1, limit_s=60)
    entrant._paces["usearch exact"] = 10_000, 9.5
    case = records.Case(input="gaussian", n=30_000, d=384, k=10)
    reason = "would take about 85.5 s by its time for 10,000 rows; the limit is 60 s"
    assert entrant._too_slow(entrant.contestants[0], case) == reason
    assert entrant._too_slow(entrant.contestants[0], case.model_copy(update={"n": 20_000})) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "'0': expected a whole number of at least 1"),
        (["--contestants", "nobody"], "contestant 'nobody'"),
        (["--sizes", "5", "--k", "10"], "5 rows with k=10"),
        (["--show", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_record_is_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(SystemExit):
        benchmark.main(["--show", str(tmp_path / "other.json")])
    assert "validation error" in capsys.readouterr().err
