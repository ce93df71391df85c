"""Real texts on every machine: the docstrings of what is installed there. Files are parsed, nothing is imported or run."""

import ast
import importlib.util
import os
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

# What the project depends on anyway, so that the corpus is the same wherever the same versions are installed.
_PACKAGES = ("keras", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "tensorflow")
_FOLDERS_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_MIN_CHARACTERS = 40
_N_SPARE = 2000  # docstrings read beyond the limit, so that a small sample comes from hundreds of files and not from a few


def builtin_texts(limit: int | None = None) -> list[str]:
    """The corpus that `load_texts` describes."""
    texts: dict[str, None] = {}  # distinct, in the order found
    for path in _source_files():
        texts |= _long_enough(_docstrings(path))
        if limit is not None and len(texts) >= limit + _N_SPARE:
            break
    if limit is not None and len(texts) < limit:
        texts = _long_enough(paragraph.strip() for text in texts for paragraph in re.split(r"\n\s*\n", text))
    sample = list(texts)
    random.Random(0).shuffle(sample)
    return sample[:limit]


def _long_enough(texts: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(text for text in texts if len(text) >= _MIN_CHARACTERS)


def _source_files() -> list[Path]:
    """The Python files of the standard library and of the packages, shuffled, in an order that never changes."""
    specs = (importlib.util.find_spec(package) for package in _PACKAGES)  # finds a package without importing it
    folders = [sysconfig.get_path("stdlib"), *(spec.submodule_search_locations[0] for spec in specs if spec)]
    paths = []
    for folder in folders:
        for root, subfolders, files in os.walk(folder):
            subfolders[:] = sorted(set(subfolders) - _FOLDERS_LEFT_OUT)
            paths += [Path(root, file) for file in sorted(files) if file.endswith(".py")]
    random.Random(0).shuffle(paths)
    return paths


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # other people's invalid escapes
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # unreadable, or a template with a .py name
        return
    yield from (ast.get_docstring(node) or "" for node in _definitions(tree))


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """The module, classes and functions in a tree; four times as fast as `ast.walk`, which enters expressions too."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(child)
