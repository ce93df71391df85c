"""Rows that are searched again and again, prepared once."""

import dataclasses
import functools
from typing import Any, get_args

from .engine import Neighbors
from .inputs import OnInvalid, check_choice, check_k, check_n_jobs, check_pair, check_vectors

_QUERIES_AT_ONCE, _ROWS_AT_ONCE = 64, 4096  # a tile of products, 1 MiB, stays in the L2 cache of a core


class Corpus:
    """The rows that queries are compared with, on the CPU; exact, as `top_k`.

        corpus = similarity.Corpus(vectors)
        corpus.top_k(queries, k=10)  # as similarity.top_k(queries, 10, Y=vectors), without what that prepares

    Beside the rows themselves, which are used where they are if they are C-contiguous float32, it holds their int8 codes: a
    quarter of their size. Calls may come from several threads at once. Rows that are multiples of each other, equal ones
    excepted, are in the order of their rounded scores, in which `top_k` takes them for equal.

    Args:
        Y: (m, d), dense, as `top_k`. Do not change it afterwards.
        on_invalid: as `top_k`, for the rows of `Y`.
        n_jobs: threads that prepare; as `top_k`.

    Raises:
        TypeError, ValueError: as `top_k`.
    """

    def __init__(self, Y: Any, *, on_invalid: OnInvalid = "raise", n_jobs: int | None = None) -> None:
        from .cpu import search as engine

        check_choice("on_invalid", on_invalid, get_args(OnInvalid))
        self._rows = check_vectors(Y, "Y")
        n_threads = check_n_jobs(n_jobs)
        self._prepared = engine.Prepared.of(self._rows, on_invalid, n_threads, "Y")
        methods = [engine.Float32 if engine.int8_problem() else engine.Int8]
        self._settings = engine.Settings(methods, n_threads, _QUERIES_AT_ONCE, _ROWS_AT_ONCE)
        self._columns = None
        if len(self._prepared.unit):
            self._columns = engine.Columns(self._prepared.unit, self._settings)
            self._columns.pack(n_threads)

    def __len__(self) -> int:
        return len(self._rows)

    def top_k(self, X: Any, k: int = 10, *, on_invalid: OnInvalid = "raise", n_jobs: int | None = None) -> Neighbors:
        """The `k` rows of the corpus nearest to each row of `X` (n, d); arguments, answer and errors as of `top_k`."""
        from .cpu import search as engine

        X, _ = check_pair(X, self._rows)
        check_choice("on_invalid", on_invalid, get_args(OnInvalid))
        n_threads = engine.useful_threads(check_n_jobs(n_jobs), len(X), len(self))
        settings = dataclasses.replace(self._settings, n_threads=n_threads)
        search = functools.partial(engine.search, columns=self._columns)
        return Neighbors(*engine.top_k(X, self._prepared, check_k(k), settings, on_invalid, search))
