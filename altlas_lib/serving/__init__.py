"""A server for the accelerated functions: the Open Inference Protocol for answers at once, durable jobs for long work.

    altlas serve --corpus vectors.npy --model forecaster.onnx

`docs/serving.md` says how to call it, and how to deploy it.
"""

import importlib
import inspect
import sys
from typing import Any

from .settings import ServeError, Settings

_MEASURE = ("Server", "ask", "infer_request", "measure_load", "read_answer", "running_server", "summarize", "wait_for_job")
__all__ = ["ServeError", "Settings", "command", *_MEASURE]


def __getattr__(name: str) -> Any:
    if name in _MEASURE:  # loaded when it is asked for: the command line needs the settings only
        return getattr(importlib.import_module(".measure", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def command(**options: Any) -> None:
    """Serve similarity search and ONNX models over HTTP, and jobs that no kill loses. docs/serving.md has the rest."""
    try:
        settings = Settings(**options)
        from .app import run

        run(settings)
    except ServeError as error:
        sys.exit(str(error))


command.__signature__ = inspect.signature(Settings)  # typer's options are those of the settings
