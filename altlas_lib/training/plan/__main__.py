"""Compile the training steps of the presets for the GPUs of the catalogue, once, into the file that ships with the library.

    nice python -m altlas_lib.training.plan  # hours of one core

It goes on where it was stopped, and begins anew where the code of a step or a version of JAX or Keras has changed. Each answer
is in the file as soon as it is there.
"""

import itertools
from collections.abc import Iterable

from ...devices import GpuSpec, load_catalogue
from ..model.config import PRESETS
from .answers import SHIPPED_FILE, begin_anew, read_shipped, request_key
from .mitigations import find_mitigations
from .request import PlanError, StepRequest, compile_steps, describe_gpu

_TIME_LIMIT_S = 1800  # for one step on one GPU, on a busy machine


def main(presets: Iterable[str] = tuple(PRESETS), gpus: Iterable[GpuSpec] = load_catalogue()) -> None:
    shipped, answers = read_shipped(), begin_anew()
    if shipped.versions == answers.versions:
        answers = shipped
    for preset in presets:
        for row, gpu in itertools.product(find_mitigations(PRESETS[preset]), gpus):
            request = StepRequest(config=row.config, **row.step, target=describe_gpu(gpu))
            if (key := request_key(request)) in answers.steps:
                continue
            said = f"{preset}, {row.name}, {gpu.name}"
            try:
                (cost,) = compile_steps([request], time_limit_s=_TIME_LIMIT_S)
            except PlanError as error:  # the process died: the next row may do better
                print(f"{said}: {error}", flush=True)
                continue
            answers.steps[key] = cost
            answers.save(SHIPPED_FILE)
            print(f"{said}: {cost.error or cost.peak_bytes}", flush=True)


if __name__ == "__main__":
    main()
