"""Queries against rows that stay the same: CPU milliseconds of one thread for a call, by the number of queries in it.

    python -m benchmarks.queries [--json FILE]

`similarity.Corpus` beside NumPy's product with a partition and, where it is installed, faiss' flat index. Preparation is not
timed, for all three have one; rounds are run in turn. All answers are compared.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from altlas_lib import similarity
from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance

N_ROWS, D, K = 20_000, 384, 10
QUERIES = (1, 8, 48, 256)
N_ROUNDS = 50  # of each number of queries

Search = Callable[[np.ndarray], np.ndarray]  # (n, d) queries -> (n, k) indices, nearest first


class QueryTimes(Model):
    contestant: str
    n_queries: int
    cpu_s: list[float]  # of each round


class QueryRecord(Model):
    provenance: Provenance
    n_rows: int = N_ROWS
    d: int = D
    k: int = K
    times: list[QueryTimes]


def _contestants(rows: np.ndarray) -> dict[str, Search]:
    corpus = similarity.Corpus(rows, n_jobs=1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def by_numpy(queries: np.ndarray) -> np.ndarray:
        scores = queries @ unit.T  # lengths of the queries change no order
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    found: dict[str, Search] = {"Corpus": lambda queries: corpus.top_k(queries, K, n_jobs=1).indices, "NumPy": by_numpy}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(D)
        index.add(unit)
        found["faiss IndexFlatIP"] = lambda queries: index.search(queries, K)[1]
    return found


def measure() -> QueryRecord:
    """Raises AssertionError where two contestants name other neighbours."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N_ROWS, D), dtype=np.float32)
    contestants, times = _contestants(rows), []
    with threadpool_limits(1):
        for n in QUERIES:
            queries = rng.standard_normal((n, D), dtype=np.float32)
            answers = [search(queries) for search in contestants.values()]
            assert all((answer == answers[0]).all() for answer in answers), "the contestants disagree"
            cpu_s: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(N_ROUNDS):
                for name, search in contestants.items():
                    start = time.process_time()
                    search(queries)
                    cpu_s[name].append(time.process_time() - start)
            times += [QueryTimes(contestant=name, n_queries=n, cpu_s=some) for name, some in cpu_s.items()]
    parameters = {"n_rows": N_ROWS, "d": D, "k": K, "queries": list(QUERIES)}
    return QueryRecord(provenance=Provenance.now(parameters), times=times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.queries", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured")
    options = parser.parse_args(arguments)
    record = measure()
    for each in record.times:
        median_ms, least_ms = 1e3 * statistics.median(each.cpu_s), 1e3 * min(each.cpu_s)
        print(f"{each.n_queries:4} queries, {each.contestant:18} {median_ms:8.2f} ms of one core (at least {least_ms:.2f})")
    if options.json:
        write_atomically(options.json, record.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
