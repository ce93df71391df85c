"""Functions compiled by Numba whose compiled code is kept for the next process, wherever that is possible.

Numba's own cache stops a program where no folder can be written to, where a file of it is damaged and where the disk is
full. Here such a file is compiled again, and a disk that takes nothing costs some seconds in every process.
"""

import contextlib
import functools
import hashlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.serialize import dumps


class _ChecksummedImpl(CompileResultCacheImpl):
    """Machine code with a SHA-256, for nothing in the code itself would notice a flipped bit."""

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        data = dumps(super().reduce(cres))
        return hashlib.sha256(data).digest(), data

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, data = payload
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("compiled code is damaged")
        return super().rebuild(target_context, pickle.loads(data))  # our own file, in a folder of this user's


class _Cache(FunctionCache):
    _impl_class = _ChecksummedImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a damaged file makes of unpickling
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "compiled code cannot be kept (no folder of Numba's can be written to), so each process compiles for some seconds; "
        "set NUMBA_CACHE_DIR to a folder of your own that can be written to",
        stacklevel=4,
    )


def compiled(function: Callable | None = None, **options: Any) -> Any:
    """`numba.njit` without the GIL and with a cache that heals itself; a decorator, with or without njit's options."""
    if function is None:
        return functools.partial(compiled, **options)
    dispatcher = njit(nogil=True, **options)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:  # no folder can be written to
        dispatcher._cache = NullCache()
        _warn_once()
    return dispatcher
