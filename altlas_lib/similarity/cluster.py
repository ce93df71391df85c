"""The same search on the workers of a Dask cluster: exact, and bit by bit the answer of one machine."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..devices import to_cpu
from .cpu.preparation import UnitRows
from .cpu.search import Settings, search
from .cpu.threads import blocks_of
from .scheme import join_keys, split_keys

_LEAST_PANEL_ROWS = 2048


def search_on(client: Any, *, device: str, method: str, n_jobs: int | None, working_memory: float | None) -> Callable:
    """`cpu.search`, its work shared out among the workers of a `dask.distributed.Client`.

    Rows go out in panels, and a task compares two of them. On CPUs each panel is first compared with itself, which gives
    every row a score that k neighbours reach: the threshold for all tasks that follow. Panels are results of tasks, not
    scattered data: when a worker is lost, Dask makes them again and repeats what was lost.
    """
    from distributed import as_completed

    options = {"device": device, "method": method, "n_jobs": n_jobs, "working_memory": working_memory}

    def search_panels(A: UnitRows, B: UnitRows, k: int, settings: Settings) -> tuple[np.ndarray, None]:
        is_square = B is A
        n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        rows_a, rows_b = (blocks_of(len(rows), max(_LEAST_PANEL_ROWS, -(-len(rows) // (2 * n_workers)))) for rows in (A, B))
        keys = np.zeros((len(A), k), np.uint64)
        futures: list[Any] = []

        def submit(function: Callable, *arguments: Any, **named: Any) -> Any:
            futures.append(client.submit(function, *arguments, **named, pure=False))
            return futures[-1]

        def keep(block: slice, found: np.ndarray) -> None:
            keys[block] = np.sort(np.concatenate([keys[block], found], axis=1), axis=1)[:, : -k - 1 : -1]

        def collect(tasks: dict[Any, tuple[int, int]]) -> None:
            for future, found in as_completed(list(tasks), with_results=True):
                a, b = tasks[future]
                keep(rows_a[a], found[0])
                if found[1] is not None:
                    keep(rows_a[b], found[1])
                if settings.progress:
                    settings.progress(sum(task.done() for task in futures) / n_tasks)

        try:
            panels_a = [submit(_panel, A[block]) for block in rows_a]
            panels_b = panels_a if is_square else [submit(_panel, B[block]) for block in rows_b]
            one_way = not is_square or device == "gpu"
            pairs = [(a, b) for a in range(len(rows_a)) for b in range(len(rows_b)) if one_way or a <= b]
            n_tasks = len(panels_a) + (0 if is_square else len(panels_b)) + len(pairs)

            def compare(some: list[tuple[int, int]], thresholds: bool) -> None:
                tasks = {}
                for a, b in some:
                    reached = (_reached(keys[rows_a[a]]), _reached(keys[rows_a[b]])) if thresholds else (None, None)
                    first = rows_a[a].start, rows_b[b].start
                    other = None if is_square and a == b else panels_b[b]
                    tasks[submit(_compare, panels_a[a], other, k, first, reached, **options)] = (a, b)
                collect(tasks)

            compare([pair for pair in pairs if one_way or pair[0] == pair[1]], False)
            if not one_way:
                compare([pair for pair in pairs if pair[0] != pair[1]], True)
        finally:
            client.cancel(futures)
        return keys, None

    return search_panels


def _panel(rows: UnitRows) -> UnitRows:
    return rows


def _reached(keys: np.ndarray) -> np.ndarray:
    """The score of each row's k-th best, -inf where there are fewer."""
    return np.where(keys[:, -1] == 0, np.float32(-np.inf), split_keys(keys[:, -1])[1])


def _compare(
    A: UnitRows,
    B: UnitRows | None,
    k: int,
    first: tuple[int, int],
    thresholds: tuple[Any, Any],
    *,
    device: str,
    method: str,
    n_jobs: int | None,
    working_memory: float | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """On a worker: the keys of the `k` best of each row of `A` among `B`, and of `B` among `A` if there are thresholds."""
    if device == "gpu":
        from . import gpu

        n = len(A) - 1 if B is None else len(B)
        found = gpu.top_k(A.rows, None if B is None else B.rows, min(k, n), working_memory=working_memory)
        keys = np.zeros((len(A), k), np.uint64)
        keys[:, : min(k, n)] = join_keys(to_cpu(found[0]) + first[1], to_cpu(found[1]))
        return keys, None
    from distributed import get_worker

    n_jobs = n_jobs or get_worker().state.nthreads
    settings = Settings.choose(method, (len(A), len(A if B is None else B)), n_jobs, working_memory)
    both_ways = thresholds[0] is not None
    of_a, of_b = search(A, A if B is None else B, k, settings, both_ways=both_ways, first=first, thresholds=thresholds)
    return of_a, of_b if both_ways else None
