"""A server for the accelerated functions: the Open Inference Protocol for answers at once, durable jobs for long work.

    altlas serve --corpus vectors.npy --model forecaster.onnx

`docs/serving.md` says how to call it, and how to deploy it.
"""

import importlib
import inspect
import sys
from typing import Any

from .settings import ServeError, Settings

_MEASURE = ("Server", "measure_load", "read_answer", "running_server", "search_request", "summarize", "wait_for_job")
__all__ = ["ServeError", "Settings", "command", "serve", *_MEASURE]


def __getattr__(name: str) -> Any:
    if name in _MEASURE:  # loaded when it is asked for: the command line needs the settings only
        return getattr(importlib.import_module(".measure", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def serve(settings: Settings, program: str = "altlas_lib.served") -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has been accepted and give a running job back to its queue.

    Args:
        program: module that the worker processes load, see `worker.Worker`.

    Raises:
        ServeError: what is to be served cannot be loaded, or another server has the store.
        ImportError: the extra `serve` is not installed.
    """
    from .app import run

    run(settings, program)


def command(**options: Any) -> None:
    """Serve similarity search and ONNX models over HTTP, and jobs that no kill loses. docs/serving.md has the rest."""
    try:
        serve(Settings(**options))
    except ServeError as error:
        sys.exit(str(error))


command.__signature__ = inspect.signature(Settings)  # typer's options are those of the settings
