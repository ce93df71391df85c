"""Is a projected latency true, and what do the variants of a model cost and bring on this machine?

    python -m benchmarks.inference bert [--json] [--compile]
    python -m benchmarks.inference variants [MODEL ...] [--json]
    python -m benchmarks.inference calibration [--json]

`bert` holds the projection of a forward pass against TensorRT's latencies of BERT base (NVIDIA/TensorRT, demo/BERT/README.md,
mean, copies excluded), which stand in `benchmarks/published/bert_latency.csv`. The passes that XLA compiled lie in
`benchmarks/results/bert_forward.json`; `--compile` compiles them anew, in about two minutes. TensorRT's 8-bit kernels are
projected from the float16 pass: twice the arithmetic, half the bytes.

`variants` converts and times three models that users have (resnet: images of 32 x 32; attention: an encoder; lstm) and the
chapter's quick preset: size, agreement, speed beside float32 and beside Keras. Run it on a quiet machine: times of a busy one
are no evidence.

`calibration` trains a small classifier on handwritten digits and asks how much the three methods differ, with how many samples.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altlas_lib import devices, inference, tables
from altlas_lib.inference.forward import project
from altlas_lib.paths import write_atomically
from altlas_lib.results import Forward

FOLDER = Path(__file__).parent
LATENCIES, PASSES = FOLDER / "published/bert_latency.csv", FOLDER / "results/bert_forward.json"
CALIBRATION_SIZES = (16, 64, 256, 1024)


def encoder(sequence: int, *, layers: int, width: int, heads: int, vocabulary: int, name: str) -> Any:
    """An encoder with attention, as BERT: tokens (n, sequence) -> two numbers for each."""
    import keras

    tokens = keras.Input((sequence,), dtype="int32", name="tokens")
    positions = keras.layers.Embedding(sequence, width)(keras.ops.zeros_like(tokens) + np.arange(sequence, dtype=np.int32))
    x = keras.layers.LayerNormalization()(keras.layers.Embedding(vocabulary, width)(tokens) + positions)
    for _ in range(layers):
        attended = keras.layers.MultiHeadAttention(heads, width // heads)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        inner = keras.layers.Dense(4 * width, activation="gelu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(width)(inner))
    return keras.Model(tokens, keras.layers.Dense(2, name="spans")(x), name=name)


def bert128() -> Any:
    return encoder(128, layers=12, width=768, heads=12, vocabulary=30522, name="bert_base")


def bert384() -> Any:
    return encoder(384, layers=12, width=768, heads=12, vocabulary=30522, name="bert_base")


def resnet() -> Any:
    """The first two stages of `keras.applications.ResNet50`, for images of 32 x 32."""
    import keras

    whole = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(whole.get_layer("conv3_block4_out").output)
    return keras.Model(whole.input, keras.layers.Dense(10, activation="softmax", name="classes")(x), name="resnet")


def attention() -> Any:
    return encoder(64, layers=4, width=128, heads=4, vocabulary=2000, name="attention")


def lstm() -> Any:
    import keras

    steps = keras.Input((50, 8), name="steps")
    x = keras.layers.LSTM(64)(keras.layers.LSTM(64, return_sequences=True)(steps))
    return keras.Model(steps, keras.layers.Dense(3, activation="softmax", name="classes")(x), name="lstm")


def quick() -> Any:
    from altlas_lib import training

    return training.build_model(training.find_preset("quick"))


MODELS = {each.__name__: each for each in (resnet, attention, lstm, quick)}


# BERT ---------------------------------------------------------------------------------------------------------------------


def compile_passes() -> dict[str, Forward]:
    """'GPU, sequence, batch' -> BERT's float16 pass, for each row that was published."""
    rows = {(row["gpu"], row["sequence"], row["batch"]) for row in _read_latencies()}
    found = {}
    for gpu, sequence, batch in sorted(rows):
        model = f"benchmarks.inference:bert{sequence}"
        found[f"{gpu}, {sequence}, {batch}"] = inference.compile_forward(model, gpu, batch=int(batch), dtype="float16")
    return found


def _read_latencies() -> list[dict[str, str]]:
    with LATENCIES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judge_latencies() -> list[dict[str, Any]]:
    """A row for each published latency: the projected band, and whether the latency lies within."""
    passes, rows = json.loads(PASSES.read_text("utf-8")), []
    for row in _read_latencies():
        cost = Forward.model_validate(passes[f"{row['gpu']}, {row['sequence']}, {row['batch']}"])
        speed_up = {"float16": 1, "int8": 2}[row["precision"]]
        band = project(cost, devices.find_gpu(row["gpu"]), speed_up=speed_up)
        published_s = float(row["mean_ms"]) / 1000
        off = max(1, band.low / published_s, published_s / band.high)
        name = {"GPU": row["gpu"], "precision": row["precision"], "sequence": row["sequence"], "batch": row["batch"]}
        said = {"published": f"{1000 * published_s:g} ms", "projected": str(band), "bound by": band.bound_by}
        rows.append(name | said | {"inside": off == 1, "off by": round(off, 2), "width": round(band.high / band.low, 2)})
    return rows


# Variants -----------------------------------------------------------------------------------------------------------------


def try_variants(name: str, folder: Path, batches: Sequence[int] = (1, 32)) -> list[dict[str, Any]]:
    """A row for each variant of a model: converted or why not, agreement, size, and speed on one thread of this CPU."""
    model, file, rows = MODELS[name](), folder / f"{name}.onnx", []
    inference.export_onnx(model, file)
    session = inference.open_session(file)
    inputs, calibration = inference.draw_inputs(session, 256), inference.draw_inputs(session, 128, seed=1)
    expected, files = inference.run_batches(session, inputs), {"float32": file}
    for precision in inference.PRECISIONS:
        row = {"model": name, "variant": precision}
        try:
            made = inference.convert(file, folder / f"{name}.{precision}.onnx", precision, calibration=calibration)
            (found, *_) = inference.compare_outputs(expected, inference.run_batches(inference.open_session(made), inputs))
            files[precision] = made
            rows.append(row | {"size_kb": made.stat().st_size // 1000, "rms": found.rms, "same_class": found.class_agreement})
        except inference.InferenceError as error:
            rows.append(row | {"problem": str(error)})
    runners = {name: inference.onnx_runner(each, threads=1) for name, each in files.items()}
    latencies = inference.measure(runners | inference.keras_runners(model), inputs, batches=batches, threads=1)
    times = {(each.runner, each.batch): each.time.value for each in latencies}
    first = {"model": name, "variant": "float32", "size_kb": file.stat().st_size // 1000}
    for row in (first, *rows):
        for batch in batches:
            if time_s := times.get((row["variant"], batch)):
                row[f"beside float32, {batch}"] = times["float32", batch] / time_s
                row[f"beside Keras predict, {batch}"] = times["Keras predict", batch] / time_s
                row[f"beside Keras compiled, {batch}"] = times["Keras compiled", batch] / time_s
    return [first, *rows]


# Calibration --------------------------------------------------------------------------------------------------------------


def compare_calibrations(folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """How near a trained classifier stays to itself in 8 bits, by method and number of samples of the training part."""
    import keras
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, y = (digits.images[order, :, :, None] / 16).astype("float32"), digits.target[order]
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(width, 3, activation="relu", padding="same") for width in (16, 32)]
    head = [
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax", name="digit"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *layers, *head])
    model.compile("adam", "sparse_categorical_crossentropy")
    n_train = len(x) - 500
    model.fit(x[:n_train], y[:n_train], epochs=15, batch_size=64, verbose=0)
    inference.export_onnx(model, folder / "digits.onnx")
    test, rows = {"image": x[n_train:]}, []
    expected = inference.run_batches(inference.open_session(folder / "digits.onnx"), test)
    accuracy = float(np.mean(expected["digit"].argmax(axis=1) == y[n_train:]))
    for method in inference.METHODS:
        for n in CALIBRATION_SIZES:
            how = {"calibration": {"image": x[:n]}, "method": method}
            made = inference.convert(folder / "digits.onnx", folder / "digits.int8.onnx", "int8 static", **how)
            got = inference.run_batches(inference.open_session(made), test)
            (found,) = inference.compare_outputs(expected, got)
            kept = inference.accuracy_kept(expected["digit"], got["digit"], y[n_train:])
            row = {"method": method, "samples": n, "rms": found.rms, "same class": found.class_agreement}
            rows.append(row | {"accuracy kept": kept.value, "low": kept.low, "high": kept.high, "accuracy": accuracy})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bert", "variants", "calibration"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of variants: {', '.join(MODELS)}")
    parser.add_argument("--compile", action="store_true", help="of bert: compile the passes anew")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(MODELS):
        print(f"no model {sorted(unknown)[0]!r}: expected some of {', '.join(MODELS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        if options.what == "bert":
            if options.compile:
                passes = {name: cost.model_dump(mode="json") for name, cost in compile_passes().items()}
                write_atomically(PASSES, json.dumps(passes, indent=1) + "\n")
            rows = judge_latencies()
        elif options.what == "variants":
            rows = [row for name in options.models or MODELS for row in try_variants(name, Path(folder))]
        else:
            rows = compare_calibrations(Path(folder))
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [dict.fromkeys(columns) | row for row in rows]
    formats = {column: "{:.3g}" for column in columns if any(isinstance(row[column], float) for row in rows)}
    print(json.dumps(rows, indent=1) if options.json else tables.show(rows, formats=formats, missing="-").text(180))
    if options.what == "bert" and not options.json:
        print(f"\n{sum(row['inside'] for row in rows)} of {len(rows)} inside")
    return 0


if __name__ == "__main__":
    sys.exit(main())
