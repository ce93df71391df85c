"""What the values of a notebook's parameters may be: types, and by name ranges, choices and what must exist.

`parameters.toml` declares them once; `check_existence` looks at files, columns, GPUs and runs before anything starts.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from . import data, devices
from .paths import outputs_dir, shipped_toml

_ITEMS = {kind.__name__: kind for kind in (int, float, str, bool)}
TYPES = (*_ITEMS, "list[int]", "list[float]", "list[str]")
_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "one_of": "one of"}


def declared(name: str) -> dict[str, Any]:
    """The row of `parameters.toml`; empty: any value of the parameter's type."""
    return dict(shipped_toml("altlas_lib", "parameters.toml").get(name, {}))


def adapter(name: str, type_name: str) -> TypeAdapter:
    """Validates a value of the parameter `name` of one of `TYPES`; an int may stand for a float, nothing else is converted."""
    row = declared(name)
    length, choices = {"min_length": row.pop("min_length", None)}, row.pop("one_of", None)
    row.pop("check", None)
    item = _ITEMS[type_name.removeprefix("list[").removesuffix("]")]
    if item is str:
        item = Annotated[str, AfterValidator(_refuse_surrogates)]
    item = Literal[tuple(choices)] if choices else Annotated[item, Field(**row)]
    kind = Annotated[list[item], Field(**length)] if type_name.startswith("list") else item
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _refuse_surrogates(text: str) -> str:
    text.encode()  # half a character, which no file could hold
    return text


def describe(name: str, type_name: str) -> str:
    """The type and the range in words: `"int, at least 1"`."""
    bounds = [f"{_WORDS[key]} {value}" for key, value in declared(name).items() if key in _WORDS]
    return ", ".join([type_name, *bounds])


def check_existence(name: str, value: Any, values: Mapping[str, Any]) -> None:
    """Look whether what a parameter names is there: a GPU of the catalogue, a file with that table and column, another run.

    Args:
        values: of all parameters of its notebook.

    Raises:
        ValueError, OSError: it is not.
    """
    check = declared(name).get("check")
    for each in value if isinstance(value, list) else [value]:
        if each and check in _FINDING:
            _FINDING[check](each, values)
        elif each and check:
            holds, expected = _EXPECTED[check]
            if not holds(each):
                raise ValueError(f"expected {expected}, seen from {str(Path.cwd())!r}; correct it")


def _find_series(source: str, values: Mapping[str, Any]) -> None:
    if source != "generated":
        data.check_series(source, table=values.get("series_table") or None, column=values.get("series_column") or None)


def _find_rules(_: Any, values: Mapping[str, Any]) -> None:
    from .report import Rules

    Rules.load(values.get("rules"), price_per_hour=values.get("price_per_hour"))


def _check_shares(devices: int, values: Mapping[str, Any]) -> None:
    if not devices <= values["micro_batch_size"]:
        raise ValueError(f"micro_batch_size={values['micro_batch_size']}: give each device a sample of it, or plan for less")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_FINDING: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {  # raises what names the nearest, or what there is
    "gpu": lambda name, _: devices.find_gpu(name),
    "texts": lambda source, values: data.check_texts(source, column=values.get("text_column") or None),
    "series": _find_series,
    "rules": _find_rules,
    "devices": _check_shares,
}
_EXPECTED: dict[str, tuple[Callable[[str], bool], str]] = {
    "json object": (_is_object, 'a JSON object, such as {"n": 1000}'),
    "file": (os.path.isfile, "a file that is there"),
    "model": (
        lambda name: os.path.isfile(name) if name.endswith((".keras", ".onnx")) else ":" in name,
        "a .keras or .onnx file that is there, or module:function",
    ),
    "embedding": (
        lambda name: name in ("svd", "hashing") or (os.path.isfile if name.endswith(".npy") else os.path.isdir)(name),
        "'svd', 'hashing', a .npy matrix or a folder with a sentence-transformers model that is there",
    ),
    "run": (lambda name: os.path.basename(name) == name and (outputs_dir() / name / "results").is_dir(), "another run"),
}
