"""Which model is meant: a configuration, a preset's name, a Keras model, a `.keras` file, or a function that builds one."""

import importlib.util
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ..checks import describe_class
from ..model.config import PRESETS, ModelConfig, find_preset
from ..private import sublayers
from .request import EXPECTED_MODEL, PlanError

_MAX_CONFIG_BYTES = 2**26  # of a file's layers: the largest of keras.applications has less than 1 MiB
_MAX_UNPACKED, _MAX_RATIO = 2**30, 20  # bytes that any file may unpack to, else so many times its own size


@dataclass(frozen=True)
class Subject:
    """The model that is planned.

    Attributes:
        label: what to call it.
        fields: of the request that says what to compile.
        identity: what else than the request decides the answer.
    """

    label: JsonValue
    fields: dict[str, Any]
    identity: tuple[str, ...] = ()


def find_subject(model: Any, modules: Sequence[str], folder: Path) -> Subject:
    """Say what `model` is, without building it.

    Args:
        modules: that define a `.keras` file's own layers and losses.
        folder: for the file of a model object.

    Raises:
        ValueError: no such preset.
        PlanError: it is no Keras model, cannot be read, or its own layers cannot be imported.
    """
    is_preset = isinstance(model, str) and not model.endswith(".keras") and ":" not in model
    config = find_preset(model) if is_preset else model
    if isinstance(config, ModelConfig):
        names = {preset: name for name, preset in PRESETS.items()}
        plain = config.model_copy(update={"recompute": False, "memory_efficient_attention": False})
        return Subject(names.get(plain) or plain.model_dump(mode="json"), {"config": config})
    if isinstance(model, str) and not model.endswith(".keras"):
        return Subject(model, {"builder": model, "modules": tuple(modules)}, _read_sources([model.partition(":")[0], *modules]))
    keras = sys.modules.get("keras")
    if keras and isinstance(model, keras.Model):
        modules = sorted({*modules, *_own_modules(model, keras)})
        file, label = folder / "model.keras", model.name
        model.save(file)
    elif isinstance(model, str | Path):
        file, label = Path(model), Path(model).name
    else:
        raise PlanError(f"the model is {describe_class(model)}: {EXPECTED_MODEL}, a .keras file, 'module:function' or a preset")
    content = re.sub(r'"shared_object_id": \d+', "", _read_layers(file))  # an address in the process that wrote it
    fields = {"keras_file": str(file.resolve()), "modules": tuple(modules)}
    return Subject(label, fields, (content, *_read_sources(modules)))


def _read_layers(file: Path) -> str:
    """The description of the layers in a `.keras` file; not the weights, whose values decide nothing."""
    try:
        if not file.is_file():
            raise OSError("no such file")
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * file.stat().st_size):
                raise OSError(f"it would unpack to {unpacked:,} bytes, from {file.stat().st_size:,}")
            with archive.open("config.json") as config:
                content = config.read(_MAX_CONFIG_BYTES + 1)
            if len(content) > _MAX_CONFIG_BYTES:
                raise OSError(f"its config.json has more than {_MAX_CONFIG_BYTES:,} bytes")
            return content.decode()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise PlanError(
            f"{file.name} cannot be read as a .keras file ({error}); write it by model.save({file.name!r})"
        ) from None


def _own_modules(model: Any, keras: Any) -> set[str]:
    """The modules that define the model's own layers and losses."""
    own = [*sublayers(model), *keras.tree.flatten(getattr(model, "loss", None))]
    modules = {getattr(each, "__module__", "builtins") for each in own}
    if "__main__" in modules:
        raise PlanError(
            f"model {model.name!r} has a layer or loss that is defined in a notebook or script, which the compiling process "
            "cannot import: put it into a module"
        )
    return {module for module in modules if module.partition(".")[0] not in ("keras", "altlas_lib", "builtins")}


def _read_sources(modules: Sequence[str]) -> tuple[str, ...]:
    """The source of modules, which decides what they build."""
    contents = []
    for module in modules:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of the package that it would be in
            spec = None
        if spec is None:
            raise PlanError(f"no module named {module!r}: give a name that `import` finds, or add its folder to PYTHONPATH")
        contents.append(Path(spec.origin).read_text(errors="replace") if spec.has_location else module)
    return tuple(contents)
