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
from .answers import REDO, SHIPPED_FILE, Answers, read_answers, request_key
from .compile import compile_steps
from .mitigations import Mitigation, find_mitigations
from .request import PlanError, StepRequest, describe_gpu

_TIME_LIMIT_S = 1800  # for one step on one GPU, on a busy machine


def _compile_missing(answers: Answers, preset: str, row: Mitigation, gpus: Sequence[GpuSpec]) -> None:
    """One process builds the step and compiles it for all GPUs of which there is no answer yet."""
    step = row.step | {"config": row.model(PRESETS[preset])}
    requests = {gpu.name: StepRequest(**step, target=describe_gpu(gpu)) for gpu in gpus}
    missing = {name: request for name, request in requests.items() if request_key(request) not in answers.steps}
    if not missing:
        return
    began_s = time.monotonic()
    costs = compile_steps(list(missing.values()), time_limit_s=_TIME_LIMIT_S * len(missing))
    for (name, request), cost in zip(missing.items(), costs, strict=False):
        answers.steps[request_key(request)] = cost
        answers.save(SHIPPED_FILE)
        print(f"{preset}, {row.name}, {name}: {cost.error or cost.peak_bytes}, {time.monotonic() - began_s:.0f} s", flush=True)
        began_s = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> None:
    description, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(REDO, None, description, details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", type=find_gpu, default=load_catalogue(), metavar="GPU", help="all by default")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="all by default")
    options = parser.parse_args(arguments)
    answers = read_answers(SHIPPED_FILE)
    for preset in options.presets:
        for row in find_mitigations(PRESETS[preset]):
            try:
                _compile_missing(answers, preset, row, options.gpus)
            except PlanError as error:  # the process died: the next row may do better
                print(f"{preset}, {row.name}: {error}", flush=True)


if __name__ == "__main__":
    main()
