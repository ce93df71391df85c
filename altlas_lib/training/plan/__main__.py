"""Compile the training steps of the presets for the GPUs of the catalogue, once, into the file that ships with the library.

    nice python -m altlas_lib.training.plan                 # all: hours of one core
    nice python -m altlas_lib.training.plan --gpus T4 L4 --presets reference

It goes on where it was stopped, and begins anew where the code of a step or a version of JAX or Keras has changed. Each answer
is in the file as soon as it is there.
"""

import argparse
import itertools
from collections.abc import Sequence

from ...devices import find_gpu, load_catalogue
from ..model.config import PRESETS
from .answers import REDO, SHIPPED_FILE, begin_anew, read_shipped, request_key
from .mitigations import find_mitigations
from .request import PlanError, StepRequest, compile_steps, describe_gpu

_TIME_LIMIT_S = 1800  # for one step on one GPU, on a busy machine


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(REDO, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", type=find_gpu, default=load_catalogue(), metavar="GPU", help="all by default")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="all by default")
    options = parser.parse_args(arguments)
    shipped, answers = read_shipped(), begin_anew()
    if shipped.versions == answers.versions:
        answers = shipped
    for preset in options.presets:
        for row, gpu in itertools.product(find_mitigations(PRESETS[preset]), options.gpus):
            request = StepRequest(config=row.config, **row.step, target=describe_gpu(gpu))
            if (key := request_key(request)) in answers.steps:
                continue
            try:
                (cost,) = compile_steps([request], time_limit_s=_TIME_LIMIT_S)
            except PlanError as error:  # the process died: the next row may do better
                print(f"{preset}, {row.name}, {gpu.name}: {error}", flush=True)
                continue
            answers.steps[key] = cost
            answers.save(SHIPPED_FILE)
            print(f"{preset}, {row.name}, {gpu.name}: {cost.error or cost.peak_bytes}", flush=True)


if __name__ == "__main__":
    main()
