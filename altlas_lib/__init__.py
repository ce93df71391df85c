"""Decide, prove and pay for GPU acceleration of Python code.

One package per chapter of the workbook; a package is loaded when it is first used, so that `import altlas_lib` needs neither
TensorFlow nor CuPy and takes no time:

    from altlas_lib import similarity
    similarity.top_k(vectors, k=10)
"""

import importlib

__version__ = "0.1.0"

PACKAGES = (
    "data",
    "devices",
    "environment",
    "figures",
    "inference",
    "paths",
    "profiling",
    "report",
    "results",
    "serving",
    "similarity",
    "tables",
    "training",
    "workloads",
)

__all__ = list(PACKAGES)


def load_ipython_extension(shell) -> None:
    """`%load_ext altlas_lib`."""
    from . import shown
    from .magics import AltlasMagics

    shell.register_magics(AltlasMagics)
    shown.register(shell.display_formatter.formatters)


def __getattr__(name: str):
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its packages are {', '.join(PACKAGES)}")
