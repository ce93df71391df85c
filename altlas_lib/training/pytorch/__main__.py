"""The planner's child for models of a user's own: PyTorch's are planned here, all others handed to Keras' and XLA's step.

Requests come as JSON on standard input; one line of JSON for each goes to standard output, as from `plan.step`.
"""

import contextlib
import importlib
import json
import os
import sys

from ..plan.request import StepCost, StepRequest


def answer(request: StepRequest) -> StepCost:
    """The cost of the step, or why there is none."""
    if not (request.builder or request.module_file):
        return _ask("plan", request)
    with contextlib.suppress(Exception):  # Keras' side says what is wrong with a builder
        importlib.import_module((request.builder or "torch").partition(":")[0])
    was_loaded = "torch" in sys.modules
    found = _ask("pytorch", request) if was_loaded else None
    found = found or _ask("plan", request)
    if found.error and not was_loaded and "torch" in sys.modules:  # by the builder
        return _ask("pytorch", request) or found
    return found


def _ask(package: str, request: StepRequest) -> StepCost | None:
    return importlib.import_module(f"altlas_lib.training.{package}.step").answer(request)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a user's module prints is no answer
    for each in json.load(sys.stdin):
        print(answer(StepRequest.model_validate(each)).model_dump_json(exclude_defaults=True), file=answers, flush=True)
