"""Chapter 30's training: windows against the loop that copies them, and steps against plain Keras on the same model and batch.

    python -m benchmarks.training --output benchmarks/results/training.json
    KERAS_BACKEND=jax python -m benchmarks.training --output training_jax.json

Every contestant trains in a process of its own, and all take turns, round after round, so that a machine that slows down slows
them alike. A step lasts from the end of an epoch's first micro-batch to the end of its last one, over the micro-batches
between; what happens from then to the next epoch's first one (validation, bookkeeping) is reported beside it. The first epoch,
in which all is compiled, does not count.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from altlas_lib import data
from altlas_lib.devices import describe_cpu
from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance, Quantity

_WINDOWS = (50, 200, 500, 1000)


class Windows(Model):
    """From a series to the inputs of all its samples, features included."""

    n_samples: int
    ours: Quantity = Field(description="s, all samples: features, scaling, and gathering in batches of 64")
    loop: Quantity = Field(description="s per sample: four windows copied, 121 statistics of Python lists")
    array_loop: Quantity = Field(description="s per sample: the same with NumPy arrays for the lists")
    n_looped: int = Field(description="samples that the loops were timed on; their time grows in proportion to them")
    speedup: float = Field(description="the list loop's median time for all samples over ours")
    array_speedup: float


class Steps(Model):
    """A contestant's training: all processes."""

    contestant: str
    micro_batch_size: int
    micro_batches_per_update: int
    wall: Quantity = Field(description="s per micro-batch")
    cpu: Quantity = Field(description="s per micro-batch, user and system time of all threads")
    between_epochs: Quantity = Field(description="s of CPU per epoch: validation, and what the loop does then")
    peak_memory: Quantity = Field(description="bytes resident, of the whole process")


class Record(Model):
    provenance: Provenance
    backend: str
    preset: str
    windows: Windows
    steps: list[Steps]
    overheads: dict[str, float] = Field(description="CPU time, our median over the other's, less 1")
    memory_overheads: dict[str, float] = Field(description="peak memory, likewise")


# Windows and features -------------------------------------------------------------------------------------------------


def loop_over_samples(values: np.ndarray, positions: np.ndarray, *, as_list: bool) -> tuple[list, list]:
    """The plan's pipeline: for each sample its own copies of four windows, and statistics of the past, a Python list."""
    from altlas_lib.training import FEATURE_WINDOWS

    array, windows, features = np.log(values), [], []
    past, logs = (values.tolist(), array.tolist()) if as_list else (values, array)
    for position in positions:
        windows.append([array[position - window : position].copy() for window in _WINDOWS])
        row = []
        for window in FEATURE_WINDOWS:
            recent, x = past[position - window : position], logs[position - window : position]
            mean, std, below = np.mean(x), np.std(x, ddof=1), np.less(recent, 1.5)
            skew = window / ((window - 1) * (window - 2)) * np.sum(((np.asarray(x) - mean) / std) ** 3)
            row += [mean, std, skew, np.min(x), np.median(x), np.max(x), (x[-1] - mean) / std]
            row += [np.corrcoef(x[1:], x[:-1])[0, 1], np.mean(below), np.mean(np.greater_equal(recent, 10))]
            row += [np.mean(below[1:] != below[:-1])]
        features.append(row)
    return windows, features


def our_pipeline(values: np.ndarray) -> list[dict[str, np.ndarray]]:
    from altlas_lib.training import prepare

    samples = prepare(values, window=1000)
    positions = np.arange(1000, len(values))
    return [samples.inputs(positions[i : i + 64], 1000) for i in range(0, len(positions), 64)]


def time_windows(n_samples: int, n_looped: int, n_rounds: int) -> Windows:
    """Both take turns; before that, their features are compared."""
    from altlas_lib.training import rolling_features

    values = data.crash_series(1000 + n_samples, seed=1).values
    positions = np.linspace(1000, len(values) - 1, n_looped).astype(int)
    _, features = loop_over_samples(values, positions, as_list=True)
    np.testing.assert_allclose(rolling_features(values)[positions], features, rtol=1e-3, atol=1e-4)

    seconds = {"ours": [], "loop": [], "array_loop": []}
    for _ in range(n_rounds):
        seconds["ours"].append(_seconds(lambda: our_pipeline(values)))
        for name, as_list in (("loop", True), ("array_loop", False)):
            seconds[name].append(_seconds(lambda: loop_over_samples(values, positions, as_list=as_list)) / n_looped)  # noqa: B023
    times = {name: Quantity.measured(samples, "s", str(describe_cpu())) for name, samples in seconds.items()}
    speedup, array_speedup = (times[name].value * n_samples / times["ours"].value for name in ("loop", "array_loop"))
    return Windows(n_samples=n_samples, n_looped=n_looped, speedup=speedup, array_speedup=array_speedup, **times)


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# Steps, in a process of their own -------------------------------------------------------------------------------------

# Name -> whose loop, micro-batch size, micro-batches per update.
CONTESTANTS = {
    "Keras fit": ("keras", 64, 1),
    "ours": ("ours", 64, 1),
    "Keras fit, micro-batches": ("keras", 8, 1),
    "ours, micro-batches": ("ours", 8, 1),
    "Keras fit, accumulated": ("keras", 8, 8),
    "ours, accumulated": ("ours", 8, 8),
}
COMPARED = {  # ours, the other
    "our loop over Keras' fit": ("ours", "Keras fit"),
    "our loop over Keras' fit, micro-batches": ("ours, micro-batches", "Keras fit, micro-batches"),
    "accumulation over the same micro-batches without it": ("ours, accumulated", "ours, micro-batches"),
    "our accumulation over Keras' own": ("ours, accumulated", "Keras fit, accumulated"),
}


def work(contestant: str, preset: str, n_samples: int, n_epochs: int) -> dict[str, list[float]]:
    """Seconds per micro-batch and peak memory of one contestant, in this process."""
    from altlas_lib import training
    from altlas_lib.training.backend import keras
    from altlas_lib.training.fit.dataset import MicroBatches
    from altlas_lib.training.fit.series import open_samples
    from altlas_lib.training.model import accumulation, losses

    loop, size, n_per_update = CONTESTANTS[contestant]
    config = training.find_preset(preset)
    samples = training.prepare(data.crash_series(1000 + round(n_samples / 0.7), seed=1).values, window=1000)
    positions = np.r_[samples.split.train]
    if len(positions) % 64:  # then Keras' own accumulation would train on something else
        raise ValueError(f"{len(positions)} samples: expected a multiple of 64; give --trained a multiple of 448")

    marks, on_train_batch_end = {}, keras.callbacks.CallbackList.on_train_batch_end
    last = len(positions) // size - 1

    def marked(self, batch, logs=None):
        on_train_batch_end(self, batch, logs)
        if batch in (0, last):
            marks.setdefault(batch, []).append((time.perf_counter(), time.process_time()))

    keras.callbacks.CallbackList.on_train_batch_end = marked  # both loops call it
    n_epochs += 1
    if loop == "ours":
        numbers = {"micro_batch_size": size, "gradient_accumulation_steps": n_per_update, "learning_rate": 1e-4}
        training.train(samples, config, n_epochs=n_epochs, patience=n_epochs, **numbers)
    else:
        model = training.build_model(config)
        accumulate = n_per_update if n_per_update > 1 else None
        optimizer = keras.optimizers.Adam(1e-4, gradient_accumulation_steps=accumulate)
        weights = losses.balanced_weights(samples.targets(positions)["threshold"])
        model.compile(optimizer, losses.compile_losses(*weights), loss_weights=training.LOSS_WEIGHTS)
        parts = positions, np.r_[samples.split.validation]
        cuts = [accumulation.MicroBatching(len(part), size, size) for part in parts]
        train, validation = (
            MicroBatches(open_samples(samples, part, config.window, size), cut) for part, cut in zip(parts, cuts, strict=True)
        )
        model.fit(train, validation_data=validation, epochs=n_epochs, shuffle=False, verbose=0)
    first, last_ones = np.array(marks[0]), np.array(marks[last])
    wall_s, cpu_s = (last_ones - first)[1:].T / last
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    between_s = (first[2:] - last_ones[1:-1])[:, 1]
    return {"wall": [*wall_s], "cpu": [*cpu_s], "between_epochs": [*between_s], "peak_memory": [peak_bytes]}


def time_steps(preset: str, n_samples: int, n_epochs: int, n_rounds: int) -> list[Steps]:
    found = {name: [] for name in CONTESTANTS}
    for number in range(n_rounds):
        for name in CONTESTANTS:
            code = f"from benchmarks.training import *; print(json.dumps(work({name!r}, {preset!r}, {n_samples}, {n_epochs})))"
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"round {number + 1} of {n_rounds}, {name}: {1000 * min(found[name][-1]['cpu']):.1f} ms CPU per micro-batch",
                flush=True,
            )
    cpu, units = str(describe_cpu()), {"wall": "s", "cpu": "s", "between_epochs": "s", "peak_memory": "bytes"}
    return [
        Steps(
            contestant=name,
            micro_batch_size=CONTESTANTS[name][1],
            micro_batches_per_update=CONTESTANTS[name][2],
            **{key: Quantity.measured([x for one in rounds for x in one[key]], unit, cpu) for key, unit in units.items()},
        )
        for name, rounds in found.items()
    ]


def _parser() -> argparse.ArgumentParser:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", None, description, details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="quick", help="the model (%(default)s)")
    add("--samples", type=int, default=10_000, help="of windows and features (%(default)s)")
    add("--looped", type=int, default=300, help="of them for the loop (%(default)s)")
    add("--trained", type=int, default=896, help="samples of an epoch, a multiple of 448 (%(default)s)")
    add("--epochs", type=int, default=3, help="timed in each process (%(default)s)")
    add("--rounds", type=int, default=5, help="processes of each contestant (%(default)s)")
    add("--output", type=Path, default=Path("benchmarks/results/training.json"), help="%(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    windows = time_windows(options.samples, options.looped, options.rounds)
    print(f"{windows.n_samples:,} samples: {windows.ours}; the loop {windows.loop} each: {windows.speedup:,.0f} times as fast")
    print(f"with arrays for lists {windows.array_loop} each: {windows.array_speedup:,.0f} times as fast")
    steps = time_steps(options.preset, options.trained, options.epochs, options.rounds)
    of = {step.contestant: step for step in steps}
    record = Record(
        provenance=Provenance.now({name: str(value) for name, value in vars(options).items() if name != "output"}),
        backend=os.environ.get("KERAS_BACKEND", "tensorflow"),
        preset=options.preset,
        windows=windows,
        steps=steps,
        overheads={name: of[a].cpu.value / of[b].cpu.value - 1 for name, (a, b) in COMPARED.items()},
        memory_overheads={name: of[a].peak_memory.value / of[b].peak_memory.value - 1 for name, (a, b) in COMPARED.items()},
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
    for step in steps:
        print(
            f"{step.contestant:26} {step.micro_batch_size:3} x {step.micro_batches_per_update}: {step.wall} wall, "
            f"{step.cpu} CPU ({step.cpu.low:.4f} to {step.cpu.high:.4f}), peak {step.peak_memory}, "
            f"{step.between_epochs} CPU between epochs"
        )
    for name, overhead in record.overheads.items():
        print(f"{name}: {overhead:+.1%} CPU time, {record.memory_overheads[name]:+.1%} peak memory")


if __name__ == "__main__":
    main()
