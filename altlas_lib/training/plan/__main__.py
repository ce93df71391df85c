"""Compile the training steps of the presets for the GPUs of the catalogue, once, into the file that ships with the library.

    nice python -m altlas_lib.training.plan                 # all: hours of one core
    nice python -m altlas_lib.training.plan --gpus T4 L4 --presets reference

It goes on where it was stopped, and begins anew where the code of a step or a version of JAX or Keras has changed. Each answer
is in the file as soon as it is there.
"""

import argparse
import time
from collections.abc import Sequence

from ...devices import GpuSpec, find_gpu, load_catalogue
from ..model.config import PRESETS
from .compile import compile_steps
from .kept import REDO, Shipped, package_versions, request_key, shipped, source_digest
from .mitigations import Mitigation, find_mitigations
from .planner import make_plan, next_candidate
from .request import PlanError, StepCost, StepRequest, describe_gpu
from .subject import Subject

_TIME_LIMIT_S = 1800  # for one step on one GPU, on a busy machine


class _Compiler:
    """Compiles what the table has not yet, and saves the table after each answer."""

    def __init__(self, table: Shipped):
        self.table = table

    def compile(self, row: Mitigation, preset: str, gpus: Sequence[GpuSpec], batch_size: int) -> list[StepCost]:
        """The answer for each GPU; one process builds the step and compiles it for all that are missing."""
        options = row.step | {"batch_size": batch_size, "config": row.model(PRESETS[preset])}
        requests = [StepRequest(**options, target=describe_gpu(gpu)) for gpu in gpus]
        missing = [request for request in requests if request_key(request) not in self.table.steps]
        began_s = time.monotonic()
        for request, cost in zip(
            missing, compile_steps(missing, time_limit_s=_TIME_LIMIT_S * len(missing)) if missing else (), strict=False
        ):
            self.table.steps[request_key(request)] = cost
            self.table.save()
            took_s, began_s = time.monotonic() - began_s, time.monotonic()
            gpu = gpus[requests.index(request)]
            print(
                f"{preset}, {row.name}, {batch_size}, {gpu.name}: {cost.error or cost.peak_bytes}, {took_s:.0f} s", flush=True
            )
        return [self.table.steps[request_key(request)] for request in requests]

    def search(self, row: Mitigation, preset: str, gpu: GpuSpec) -> None:
        """Compile the candidates that `largest_batch` will ask for."""
        low, high, size = 0, None, row.batch_size
        while size:
            (cost,) = self.compile(row, preset, [gpu], size)
            if cost.error:
                return
            plan = make_plan(StepRequest(batch_size=size), Subject(preset, {}), gpu, cost)
            low, high = (size, high) if plan.verdict == "fits" else (low, size)
            size = next_candidate(low, high)


def main(arguments: Sequence[str] | None = None) -> None:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(REDO, None, description, details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", type=find_gpu, default=load_catalogue(), metavar="GPU", help="all by default")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="all by default")
    parser.add_argument("--search", nargs="*", type=find_gpu, metavar="GPU", help="search the largest batch for these, too")
    options = parser.parse_args(arguments)

    table = shipped()
    if table.versions != package_versions():
        table = Shipped(versions=package_versions(), sources=source_digest())
    compiler = _Compiler(table)
    for preset in options.presets:
        for row in find_mitigations(PRESETS[preset]):
            try:
                compiler.compile(row, preset, options.gpus, row.batch_size)
                if row.gradient_accumulation_steps == 1:
                    for gpu in options.search or ():
                        compiler.search(row, preset, gpu)
            except PlanError as error:  # the process died: the next row may do better
                print(f"{preset}, {row.name}: {error}", flush=True)


if __name__ == "__main__":
    main()
