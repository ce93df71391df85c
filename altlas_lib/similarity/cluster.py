"""The same search on the workers of a Dask cluster: exact, and bit by bit the answer of one machine."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..devices import to_cpu
from .cpu.preparation import UnitRows
from .cpu.search import Columns, Settings, compare, search
from .cpu.threads import Block, blocks_of
from .scheme import join_keys, split_keys

_LEAST_PANEL_ROWS = 2048


def search_on(client: Any, device: str, **options: Any) -> Callable:
    """`cpu.search`, its work shared out among the workers of a `dask.distributed.Client`.

    Rows go out in panels, and a task compares two of them. On CPUs each panel is first compared with itself, which gives
    every row a score that k neighbours reach: the threshold for all tasks that follow. Panels are results of tasks, not
    scattered data: when a worker is lost, Dask makes them again and repeats what was lost.

    Args:
        options: method, n_jobs and working_memory, as of `top_k`, of each task.
    """
    from distributed import as_completed

    def search_panels(A: UnitRows, B: UnitRows, k: int, settings: Settings) -> np.ndarray:
        of_itself = B is A
        one_way = not of_itself or device == "gpu"
        n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        keys = np.zeros((len(A), k), np.uint64)
        futures: list[Any] = []

        def submit(function: Callable, *arguments: Any) -> Any:
            futures.append(client.submit(function, *arguments, pure=False))
            return futures[-1]

        def share_out(rows: UnitRows) -> tuple[list[Block], list[Any]]:
            blocks = blocks_of(len(rows), max(_LEAST_PANEL_ROWS, -(-len(rows) // (2 * n_workers))))
            return blocks, [submit(_panel, rows[block]) for block in blocks]

        def keep(block: Block, found: np.ndarray, other: Block) -> None:
            found = np.where(found > 0, found - np.uint64(other.start), 0)  # the rows of a panel begin at `start`
            keys[block] = np.sort(np.concatenate([keys[block], found], axis=1), axis=1)[:, : -k - 1 : -1]

        try:
            rows, panels = share_out(A)
            columns, others = (rows, panels) if of_itself else share_out(B)
            pairs = [(a, b) for a in range(len(rows)) for b in range(len(columns)) if one_way or a <= b]
            n_tasks = len(futures) + len(pairs)
            firsts = [pair for pair in pairs if one_way or pair[0] == pair[1]]
            for some in (firsts, [] if one_way else [pair for pair in pairs if pair[0] < pair[1]]):
                tasks = {}
                for a, b in some:
                    thresholds = () if some is firsts else (_reached(keys[rows[a]]), _reached(keys[rows[b]]))
                    other = None if of_itself and a == b else others[b]
                    tasks[submit(_compare, panels[a], other, k, device, options, *thresholds)] = (a, b)
                for future, (of_a, of_b) in as_completed(list(tasks), with_results=True):
                    a, b = tasks[future]
                    keep(rows[a], of_a, columns[b])
                    if of_b is not None:
                        keep(rows[b], of_b, rows[a])
                    if settings.progress:
                        settings.progress(sum(task.done() for task in futures) / n_tasks)
        finally:
            client.cancel(futures)
        return keys

    return search_panels


def _panel(rows: UnitRows) -> UnitRows:
    return rows


def _reached(keys: np.ndarray) -> np.ndarray:
    """The score of each row's k-th best, float32; -inf where there are fewer."""
    return np.where(keys[:, -1] == 0, np.float32(-np.inf), split_keys(keys[:, -1])[1])


def _compare(
    A: UnitRows, B: UnitRows | None, k: int, device: str, options: dict[str, Any], *thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """On a worker: the keys of the `k` best of each row of `A` among `B`, and of `B` among `A` if there are thresholds."""
    if device == "gpu":
        from . import gpu

        found = gpu.top_k(A.rows, None if B is None else B.rows, k, working_memory=options["working_memory"])
        best = join_keys(*map(to_cpu, found[:2]))
        return np.pad(best, ((0, 0), (0, k - best.shape[1]))), None
    from distributed import get_worker

    columns = A if B is None else B
    options = options | {"n_jobs": options["n_jobs"] or get_worker().state.nthreads}
    settings = Settings.choose(shape=(len(A), len(columns)), **options)
    if thresholds:
        return compare(A, Columns(columns, settings), k, settings, *thresholds)
    return search(A, columns, k, settings), None
