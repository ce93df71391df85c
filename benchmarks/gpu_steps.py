"""What a GPU session asks in processes of their own: `python -m benchmarks.gpu_steps STEP --out FILE`, by `gpu_session`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altlas_lib.paths import write_atomically

# Five plans that every GPU of the catalogue can run: preset, batch size, policy.
_PLANS = [
    ("quick", 64, "float32"),
    ("quick", 512, "mixed_float16"),
    ("option1", 64, "float32"),
    ("option1", 256, "mixed_float16"),
    ("option2", 32, "float32"),
]


def calibrate(rehearse: bool) -> dict[str, Any]:
    """What `altlas calibrate` measures."""
    from altlas_lib.profiling.project.calibrate import calibrate as measure

    return measure(n_runs=2, scale=0.05).model_dump(mode="json") if rehearse else measure().model_dump(mode="json")


def measure_plans(rehearse: bool) -> list[dict[str, Any]]:
    """Bytes that a step takes by its plan for this GPU, and by JAX's own peak in a fresh process."""
    from altlas_lib.devices import describe_gpus, find_gpu
    from altlas_lib.training import find_preset, plan_memory
    from altlas_lib.training.plan.request import StepRequest

    gpu = find_gpu("T4" if rehearse else describe_gpus()[0].name)
    found = []
    for preset, batch_size, policy in _PLANS[: 1 if rehearse else None]:
        plan = plan_memory(preset, gpu, batch_size=batch_size, dtype_policy=policy)
        request = StepRequest(config=find_preset(preset), batch_size=batch_size, dtype_policy=policy)
        command = [sys.executable, "-m", "benchmarks.gpu_steps", "peak"]
        environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = subprocess.run(
            command, input=request.model_dump_json(), env=environment, capture_output=True, text=True, timeout=100
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-1000:])
        what = f"{preset}, batch of {batch_size}, {policy}"
        found.append({"what": what, "planned": plan.peak.value, "measured": json.loads(done.stdout)})
    return found


def measure_peak() -> int:
    """Bytes: JAX's peak of the step that standard input asks for; without a GPU, the arrays that it begins with."""
    import jax

    from altlas_lib.training.plan.request import StepRequest
    from altlas_lib.training.plan.step import lower_step

    _, lowered, state, batch = lower_step(StepRequest.model_validate_json(sys.stdin.read()))
    state, data = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), (tuple(state), batch))
    n_bytes = sum(array.nbytes for array in jax.tree.leaves((state, data)))
    compiled = lowered.compile()
    jax.block_until_ready(compiled(*jax.device_put((state, data))))
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", n_bytes)


def train(rehearse: bool) -> list[dict[str, Any]]:
    """The reference (rehearsed: the quick preset) by both policies: seconds of a step; stopped and resumed, the same bits."""
    from altlas_lib import data, training

    preset = "quick" if rehearse else "reference"
    config = training.find_preset(preset)
    samples = training.prepare(data.crash_series(config.window + (600 if rehearse else 3000), 0.8).values, window=config.window)
    found = []
    for policy in ("float32", "mixed_float16"):
        options = {"micro_batch_size": 16, "dtype_policy": policy, "seed": 0}
        whole = training.train(samples, config, n_epochs=2, **options)
        with tempfile.TemporaryDirectory() as folder:
            training.train(samples, config, n_epochs=1, checkpoint_folder=folder, **options)
            resumed = training.train(samples, config, n_epochs=2, checkpoint_folder=folder, resume=True, **options)
        same = training.weights_hash(whole.model) == training.weights_hash(resumed.model)
        found.append(
            {
                **{"preset": preset, "policy": policy, "step_s": whole.step_time.value, "device": whole.step_time.device},
                **{
                    "peak_bytes": whole.peak_memory and whole.peak_memory.value,
                    "resumed": "the same bits" if same else "OTHER WEIGHTS",
                },
            }
        )
    return found


def search(n_rows: int) -> None:
    """Twice, for Nsight: the first compiles."""
    from altlas_lib import similarity

    rows = np.random.default_rng(0).standard_normal((n_rows, 384), dtype=np.float32)
    for _ in range(2):
        began_s = time.perf_counter()
        similarity.top_k(rows, device="gpu")
        print(f"{time.perf_counter() - began_s:.3f} s")


_STEPS: dict[str, Callable[[bool], Any]] = {"calibration": calibrate, "plans": measure_plans, "training": train}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_steps", description=__doc__)
    parser.add_argument("step", choices=[*_STEPS, "peak", "search"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    if options.step == "search":
        search(options.rows)
    elif options.step == "peak":
        print(measure_peak())
    else:
        write_atomically(options.out, json.dumps(_STEPS[options.step](options.rehearse), indent=1))


if __name__ == "__main__":
    main()
