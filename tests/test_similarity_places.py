"""The engine from every thread, after a fork, and where compiled code cannot be kept or what was kept is damaged."""

import errno
import importlib.util
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba.core.caching import CacheImpl, IndexDataCacheFile
from threadpoolctl import threadpool_limits

from altlas_lib import similarity
from altlas_lib.similarity.cpu import cache


def rows(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def call(X, Y, method="float32"):
    return similarity.top_k(X, 10, Y=Y, device="cpu", method=method, n_jobs=1)


# Threads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["float32", "auto"])
def test_a_call_with_one_job_computes_in_the_thread_that_calls(method):
    """BLAS with all its threads would spend as much again elsewhere. Two CPU clocks are compared, no time is limited."""
    X, Y = rows(2048, 384), rows(4096, 384, seed=1)
    call(X, Y, method)

    def spent_elsewhere():
        before = time.process_time(), time.thread_time()
        for _ in range(3):
            call(X, Y, method)
        process_s, thread_s = time.process_time() - before[0], time.thread_time() - before[1]
        return (process_s - thread_s) / thread_s

    with threadpool_limits(8, user_api="blas"), ThreadPoolExecutor(1) as pool:  # the first to set a limit, for good
        spent_elsewhere()  # OpenBLAS' threads have just been started, and spin for a moment
        assert spent_elsewhere() < 0.15
        assert pool.submit(spent_elsewhere).result() < 0.15


def test_calls_from_many_threads_at_once_give_one_answer():
    X, Y = rows(300, 64), rows(900, 64, seed=1)
    expected = call(X, Y)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: call(X, Y), range(32)):
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("method", ["float32", "auto"])
def test_a_child_that_is_forked_during_a_call_computes(method):
    X, Y = rows(64, 32), rows(4096, 32, seed=1)
    expected = call(X, Y, method)
    stop = threading.Event()

    def use():
        while not stop.is_set():
            call(X, Y, method)

    busy = threading.Thread(target=use)
    busy.start()
    try:
        for _ in range(10):
            if (child := os.fork()) == 0:
                code = 1
                try:
                    code = int(not np.array_equal(call(X, Y, method).indices, expected.indices))
                finally:
                    os._exit(code)
            deadline = time.monotonic() + 60
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.01)
            if ended == (0, 0):
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert ended == (child, 0), "the child has not ended" if ended == (0, 0) else "it gave another answer"
    finally:
        stop.set()
        busy.join()


# Compiled code -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def double(tmp_path):
    """Compiles the function of a module that lies in a folder of its own, each time as a new process would."""
    (tmp_path / "of_the_user.py").write_text("def double(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("of_the_user", tmp_path / "of_the_user.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda: cache.compiled(module.double)


def n_hits(function):
    return sum(function.stats.cache_hits.values())


def test_compiled_code_is_kept(double):
    first, second = double(), double()
    assert (first(21), n_hits(first)) == (42, 0)
    assert (second(21), n_hits(second)) == (42, 1)


def _damages():
    yield "empty", lambda data: b""
    yield "half", lambda data: data[: len(data) // 2]
    yield "zeros", lambda data: bytes(len(data))
    yield "no pickle", lambda data: b"\x80\x04K\x01." + data
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):

        def flip(data, share=share):
            at = int(share * len(data))
            return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

        yield f"flipped at {share}", flip


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in _damages()])
def test_damaged_compiled_code_is_compiled_again(double, tmp_path, suffix, damage):
    double()(1)
    (file,) = tmp_path.rglob(f"*.{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert double()(21) == 42
    healed = double()
    assert (healed(21), n_hits(healed)) == (42, 1)


def test_a_full_disk_keeps_nothing_and_computes(double, monkeypatch):
    def refuse(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", refuse)
    for _ in range(2):
        function = double()
        assert (function(21), n_hits(function)) == (42, 0)


def test_where_nothing_can_be_written_one_note_says_what_to_do(double, monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # root may write anywhere
    cache._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"compiled code cannot be kept .*set NUMBA_CACHE_DIR to a folder") as notes:
        assert [double()(21), double()(21)] == [42, 42]
    assert len(notes) == 1


def test_the_engine_works_without_a_place_for_compiled_code():
    program = """
import warnings
from numba.core.caching import CacheImpl
CacheImpl._locator_classes = []
import numpy as np
from altlas_lib import similarity
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    print(similarity.top_k(np.eye(5, 3, dtype=np.float32) + 1, 1, device="cpu").indices.ravel().tolist())
print(len([note for note in notes if "NUMBA_CACHE_DIR" in str(note.message)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["1"]
