"""The search on a Dask cluster of two processes: bit by bit the answer of one machine, whatever becomes of a worker."""

import os
import signal

import numpy as np
import pytest
from scipy import sparse

from altlas_lib import similarity
from altlas_lib.similarity import cluster
from altlas_lib.similarity.cpu.products import int8_problem

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as local_cluster,
        distributed.Client(local_cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    """A quarter of the rows each, with two workers."""
    monkeypatch.setattr(cluster, "_LEAST_PANEL_ROWS", 1)


def some_rows(n=1100, seed=0):
    """With duplicates, more than are compared, and zero rows."""
    X = np.random.default_rng(seed).standard_normal((1100, 24)).astype(np.float32)
    X[1::40] = X[7]
    X[2::100] = 0
    return X[:n]


def assert_identical(found, expected):
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.skipped_rows, expected.skipped_rows)
    np.testing.assert_array_equal(found.skipped_columns, expected.skipped_columns)


@pytest.mark.parametrize("method", ["float32", "auto"] if int8_problem() else ["float32", "int8", "auto"])
@pytest.mark.parametrize("k", [1, 10, 400])  # 400: more than a panel holds
def test_the_answer_is_that_of_one_machine(client, method, k):
    X, Y = some_rows(), some_rows(700, seed=1)
    assert_identical(similarity.top_k(X, k, method=method, client=client), similarity.top_k(X, k, device="cpu"))
    assert_identical(similarity.top_k(X, k, Y=Y, method=method, client=client), similarity.top_k(X, k, Y=Y, device="cpu"))


def test_workers_agree_with_float64(client):
    X = np.random.default_rng(0).standard_normal((500, 40))
    found, expected = similarity.top_k(X, 10, client=client, n_jobs=2, working_memory=0.1), similarity.reference(X, 10)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert (found.indices == expected.indices).mean() > 0.99


def test_skipped_rows(client):
    X, Y = some_rows(), some_rows(700, seed=1)
    X[[3, 800], 2], Y[[0, 699], 1] = np.nan, np.inf
    for others in (None, Y):
        local = similarity.top_k(X, 10, Y=others, device="cpu", on_invalid="skip")
        assert local.skipped_rows.tolist() == [3, 800]
        assert_identical(similarity.top_k(X, 10, Y=others, client=client, on_invalid="skip"), local)
    with pytest.raises(ValueError, match="X holds NaN or infinity in 2 of 1,100 rows"):
        similarity.top_k(X, client=client)


@pytest.mark.parametrize(("n", "m"), [(0, None), (1, None), (3, None), (0, 4), (4, 0), (1, 1)])
def test_fewer_rows_than_panels(client, n, m):
    X, Y = some_rows(n), None if m is None else some_rows(m, seed=1)
    assert_identical(similarity.top_k(X, 5, Y=Y, client=client), similarity.top_k(X, 5, Y=Y, device="cpu"))


def test_all_rows_equal(client):
    X = np.ones((3000, 3), np.float32)
    assert_identical(similarity.top_k(X, 5, client=client), similarity.top_k(X, 5, device="cpu"))


def test_sparse_rows_are_refused(client):
    with pytest.raises(ValueError, match="client: sparse matrices are computed on this machine"):
        similarity.top_k(sparse.csr_array(np.eye(3)), client=client)


def test_progress(client, capsys):
    similarity.top_k(some_rows(), client=client, progress=True)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["each panel with itself", "with the others"])
def test_a_worker_that_is_killed_is_done_without(client, monkeypatch, tmp_path, phase):
    compare, died = cluster._compare, tmp_path / "died"

    def die_once(A, B, k, device, options, *thresholds):
        is_phase = (not thresholds) == (phase == "each panel with itself")
        if is_phase and not died.exists():
            died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return compare(A, B, k, device, options, *thresholds)

    monkeypatch.setattr(cluster, "_compare", die_once)
    X = some_rows()
    assert_identical(similarity.top_k(X, 10, client=client), similarity.top_k(X, 10, device="cpu"))
    assert int(died.read_text()) != os.getpid()


def test_an_error_on_a_worker_is_raised_and_no_task_is_left(client, monkeypatch):
    def fail(*arguments, **options):
        raise ArithmeticError("out of numbers")

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "_compare", fail)
        with pytest.raises(ArithmeticError, match="out of numbers"):
            similarity.top_k(some_rows(), client=client)
    assert client.futures == {}
    assert_identical(similarity.top_k(some_rows(), client=client), similarity.top_k(some_rows(), device="cpu"))
