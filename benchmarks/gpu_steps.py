"""What a GPU session asks in processes of their own: `python -m benchmarks.gpu_steps STEP --out FILE`, by `gpu_session`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
# Five of PyTorch, as rows of `torch_memory`; a rehearsal takes the last.
_TORCH_COLUMNS = ("model", "batch", "seq_or_image", "dtype_amp", "checkpointing")
_TORCH_PLANS = [
    ("ResNet-50", "32", "224", "fp32", "no"),
    ("ResNet-50", "64", "224", "fp16 AMP", "no"),
    ("BERT base", "32", "128", "fp32", "no"),
    ("BERT base", "32", "512", "fp16 AMP", "yes"),
    ("ResNet-50", "2", "64", "fp32", "no"),
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
        how = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        measured = _in_a_process("peak", how, request.model_dump_json())
        found.append({"what": f"{preset}, batch of {batch_size}, {policy}", "planned": plan.peak.value, "measured": measured})
    return found


def _in_a_process(step: str, environment: dict[str, str], asked: str = "") -> Any:
    command = [sys.executable, "-m", "benchmarks.gpu_steps", step]
    how = {"env": os.environ | environment, "capture_output": True, "text": True, "timeout": 140}
    done = subprocess.run(command, input=asked, **how)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    return json.loads(done.stdout)


def measure_torch(rehearse: bool) -> list[dict[str, Any]]:
    """Bytes of PyTorch's steps: by their plans, and what its allocator held and reserved at most. Two at a time: each process'
    allocator counts for itself, and planning takes a core."""
    from .torch_memory import ROW

    rows = [dict(zip(_TORCH_COLUMNS, plan, strict=True)) | {"optimizer": "AdamW", "peak_gib": "0"} for plan in _TORCH_PLANS]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(_in_a_process, "torch-peak", {ROW: json.dumps(row)}) for row in rows[-1 if rehearse else 0 :]]
        return [each.result() for each in asked]


def measure_torch_peak() -> dict[str, Any]:
    """Of the row in the environment: the ends of the plan's band, and what two updates took, None without a GPU."""
    import torch

    from altlas_lib import training

    from . import torch_memory

    row = json.loads(os.environ[torch_memory.ROW])
    point = torch_memory.read_point(row)
    planned = torch_memory.judge(point)
    module, data, *how = torch_memory.build()
    data = tuple(each.repeat(2 * point.how["batch_size"], *[1] * (each.ndim - 1)) for each in data)
    run = training.fit((module, None, *how), data, n_epochs=1, **point.how)
    peak = run.peak_memory
    return {
        **{"what": ", ".join(row[name] for name in _TORCH_COLUMNS), "planned": [planned.low, planned.high]},
        **{"allocated": peak and peak.value, "reserved": peak and torch.cuda.max_memory_reserved()},
        "final_loss": run.history[-1].metrics["loss"],
    }


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


_STEPS: dict[str, Callable[[bool], Any]] = {
    "calibration": calibrate,
    "plans": measure_plans,
    "torch": measure_torch,
    "training": train,
}

_PEAKS: dict[str, Callable[[], Any]] = {"peak": measure_peak, "torch-peak": measure_torch_peak}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_steps", description=__doc__)
    parser.add_argument("step", choices=[*_STEPS, *_PEAKS, "search"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    if options.step == "search":
        search(options.rows)
    elif options.step in _PEAKS:
        print(json.dumps(_PEAKS[options.step]()))
    else:
        write_atomically(options.out, json.dumps(_STEPS[options.step](options.rehearse), indent=1))


if __name__ == "__main__":
    main()
