"""How far a long call has come and the time left: for who sees it as it is written, and for nobody else."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

_DELAY_S, _REFRESH_S = 2.0, 1.0
_ONE_BAR = threading.Lock()  # a call within a call, or in another thread, shows none of its own

Shown = bool | Callable[[float], None] | None


def watched_stream() -> TextIO | None:
    """Stderr where it is a terminal, or the output of a notebook's cell that somebody ran: papermill and nbconvert, which do
    not say which cell it is, run it for nobody.
    """
    if "ipykernel" in sys.modules:
        from IPython import get_ipython

        if kernel := getattr(get_ipython(), "kernel", None):
            return sys.stdout if kernel.get_parent("shell").get("metadata") else None
    return sys.stderr if sys.stderr.isatty() else None


@contextlib.contextmanager
def progress_bar(what: str, shown: Shown = None) -> Iterator[Callable[[float], None] | None]:
    """A function that takes the share that is done, and shows it with the time left; None where nobody sees it.

    Args:
        what: is done, at the beginning of the line.
        shown: True: from the start, and it stays; None: where it is watched, after two seconds and until the end; or a function
            to be called instead.
    """
    stream = watched_stream() if shown is None else sys.stderr
    if callable(shown) or shown is False or not stream or not _ONE_BAR.acquire(blocking=False):
        yield shown if callable(shown) else None
        return
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that outlives the bar

    def refresh() -> None:
        while not done.wait(_REFRESH_S):
            bar.update(0)

    # Of all that is done, so that a refresh does not count as a time in which much was done: without smoothing.
    how = {"delay": 0 if shown else _DELAY_S, "leave": bool(shown), "miniters": 0, "smoothing": 0, "file": stream}
    done, refreshing = threading.Event(), threading.Thread(target=refresh, daemon=True)
    try:
        with Bar(total=1.0, desc=what, bar_format="{l_bar}{bar}| {elapsed} gone, {remaining} left", **how) as bar:
            refreshing.start()
            try:
                yield lambda share: bar.update(share - bar.n)
            finally:
                done.set()
                refreshing.join()
    finally:
        _ONE_BAR.release()


@contextlib.contextmanager
def step_counter(what: str, n_steps: int) -> Iterator[Callable[[], None]]:
    """A function to be called at the end of each of so many steps, which take about as long; shown as by `progress_bar`."""
    done = itertools.count(1)
    with progress_bar(what) as report:
        yield lambda: report and report(next(done) / n_steps)
