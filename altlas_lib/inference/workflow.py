"""All variants of a model in a folder, with what they are worth and how to run them on a server."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from ..paths import write_atomically
from ..results import Calibration, Engine, Variant, format_value
from .child import InferenceError
from .compare import compare_outputs
from .convert import PRECISIONS, convert
from .engines import build_engine, find_builder, trtexec_command
from .export import export_onnx
from .llm import LlmPlan
from .measure import Arrays, draw_inputs, open_session, run_batches

_COLUMNS = {  # of `Agreement`
    "output": "output",
    "samples": "n_samples",
    "largest difference": "largest",
    "root mean square": "rms",
    "same class": "class_agreement",
}
FILES = dict(zip(PRECISIONS, ("model.fp16.onnx", "model.int8-dynamic.onnx", "model.int8.onnx"), strict=True))


def make_variants(
    onnx_file: str | Path, inputs: Arrays, calibration: Arrays | None = None, *, method: str = "MinMax", source: str = ""
) -> list[Variant]:
    """Write the variants beside the file, and say how near each is to it; the original first.

    Args:
        inputs: on which they are compared; not those of the calibration.
        calibration: of the training part; None: no static 8 bits.
        source: what the calibration is, for the result.

    Raises:
        InferenceError: the file or the inputs are unfit. A variant that cannot be made says so itself.
    """
    file = Path(onnx_file)
    expected = run_batches(open_session(file), inputs)
    found = [Variant(name="float32", file=file.name, size_bytes=file.stat().st_size)]
    for precision in PRECISIONS:
        is_static = precision == "int8 static"
        n = len(next(iter(calibration.values()))) if is_static and calibration else 0
        used = Calibration(source=source or "the given rows", n_samples=n, method=method) if n else None
        try:
            made = convert(file, file.with_name(FILES[precision]), precision, calibration=calibration, method=method)
            agreement = compare_outputs(expected, run_batches(open_session(made), inputs))
            what = {"file": made.name, "size_bytes": made.stat().st_size, "agreement": agreement}
        except InferenceError as error:
            what = {"problem": str(error)}
        found.append(Variant(name=precision, calibration=used, **what))
    return found


def optimize(
    model: str, folder: Path, gpu: str, calibration: Path | None = None, *, modules: Sequence[str] = ()
) -> tuple[list[Variant], list[Engine]]:
    """Write all variants of a model, engines where a builder is installed, and a README into a folder.

    Args:
        model, modules: as for `export_onnx`.
        calibration: a `.npz` file.

    Raises:
        InferenceError: as `export_onnx` and `make_variants`; the calibration file cannot be read.
    """
    file = folder / "model.onnx"
    try:
        data = dict(np.load(calibration, allow_pickle=False)) if calibration else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InferenceError(f"{calibration} cannot be read ({error}): expected an .npz file") from None
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(model, file, modules=modules)
    source = calibration.name if calibration else ""
    variants, engines = make_variants(file, draw_inputs(open_session(file), 256), data, source=source), []
    for each in variants if find_builder() else ():
        if each.file:
            engine = folder / f"{Path(each.file).stem}.engine"
            engines.append(build_engine(folder / each.file, gpu, engine, variant=each.name))
    write_readme(folder, variants, engines, gpu)
    return variants, engines


def variant_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """A row of a table for each output of each variant."""
    rows = []
    for variant in variants:
        row = {"variant": variant.name, "kB": variant.size_bytes and variant.size_bytes // 1000}
        for each in variant.agreement or [None]:
            found = {title: getattr(each, field, None) for title, field in _COLUMNS.items()}
            rows.append(row | found | {"problem": variant.problem})
    return rows


def write_readme(folder: Path, variants: Sequence[Variant], engines: Sequence[Engine], gpu: str) -> Path:
    """What lies in the folder, and the commands that build and time engines on a server with the GPU."""
    made = [each for each in variants if each.file and each.name != "int8 dynamic"]
    commands = [trtexec_command(folder / each.file, folder / f"{Path(each.file).stem}.engine", each.name) for each in made]
    commands = [command.replace(f"{folder}/", "") for command in commands]
    found = {"variants": variants, "engines": engines, "gpu": gpu, "commands": commands}
    text = _fill("README.md.j2", describe=describe_engine, **found)
    return write_atomically(folder / "README.md", f"{text}\n")


def describe_engine(engine: Engine) -> str:
    """In a sentence or two."""
    size = f"{engine.size}, {engine.activations} of activations" if engine.size else None
    said = filter(None, (engine.message, engine.advice, size))
    return f"{engine.variant} on {engine.gpu}, {engine.builder or 'TensorRT'}: {'. '.join((engine.status, *said))}."


def describe_plan(plan: LlmPlan) -> str:
    """For a terminal."""
    return _fill("llm.txt.j2", plan=plan, size=lambda n_bytes: format_value(n_bytes, "bytes"))


def _fill(template: str, **values: Any) -> str:
    environment = Environment(loader=PackageLoader(__package__), trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
