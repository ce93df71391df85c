"""Decisions rest on evidence that exists: each case was written down with its verdict before the rule that gives it."""

import pytest
from test_report import CPU, GPU, changed, decision, of, results, seconds

from altlas_lib.results import (
    Expectation,
    Quantity,
    Timing,
    Validation,
)


def dumped(models):
    return [model.model_dump() for model in models]


# The port: the same answer -------------------------------------------------------------------------------------------


def timing(method, n_texts, *samples, gpu=False):
    return Timing(method=method, on_gpu=gpu, n_texts=n_texts, time=seconds(*samples, device=GPU if gpu else CPU))


def checked(method, n_texts, *, gpu=False, error=0.0):
    device = GPU if gpu else CPU
    of_own = {"largest_error": error, "tolerance": 1e-6, "n_other_neighbours": 0}
    return Validation(method=method, device=device, n_texts=n_texts, **of_own)


ON_CPU = timing("CPU tiles", 10_000, 1.0, 1.1, 1.2)
ON_GPU = timing("GPU tiles", 10_000, 0.1, 0.11, 0.12, gpu=True)
CHECKED = [checked("CPU tiles", 10_000), checked("GPU tiles", 10_000, gpu=True)]


@pytest.mark.parametrize(
    ("timings", "validations", "verdict", "why"),
    [
        # 1.0 / 0.12 and 1.2 / 0.1 by hand
        ([ON_CPU, ON_GPU], CHECKED, "go", "Same answer, and 8.3x to 12x as fast as on the CPU"),
        ([ON_CPU, ON_GPU], [], "not enough evidence", "was not compared with the reference at 10,000 texts"),
        ([ON_CPU, ON_GPU], CHECKED[:1], "not enough evidence", "was not compared with the reference at 10,000 texts"),
        # at another size, of another method
        ([ON_CPU, ON_GPU], [CHECKED[0], checked("GPU tiles", 1000, gpu=True)], "not enough evidence", "was not compared"),
        ([ON_CPU, ON_GPU], [checked("CuPy", 10_000, gpu=True)], "not enough evidence", "was not compared"),
        ([ON_CPU, ON_GPU], [*CHECKED, checked("x", 100, error=1.0)], "no-go", "Not the answer of the reference: x"),
        # the slowest runs on the GPU and the fastest on the CPU: 1.0 / 0.9 to 1.2 / 0.1
        (
            [ON_CPU, timing("GPU tiles", 10_000, 0.1, 0.11, 0.9, gpu=True)],
            CHECKED,
            "not enough evidence",
            "1.1x to 12x",
        ),
        ([ON_CPU, timing("GPU tiles", 10_000, 0.1, gpu=True)], CHECKED, "not enough evidence", "too few runs"),
        ([ON_CPU, timing("GPU tiles", 10_000, 1, 1.1, 1.2, gpu=True)], CHECKED, "no-go", "0.83x to 1.2x"),
        # the CPU went further than the GPU: the GPU was measured all the same
        (
            [ON_CPU, timing("CPU tiles", 100_000, 90, 91, 92), ON_GPU],
            CHECKED,
            "go with conditions",
            "Same answer, and 8.3x to 12x",
        ),
        (
            [timing("CPU tiles", 100_000, 90, 91, 92), ON_GPU],
            CHECKED,
            "not enough evidence",
            "no common number of texts",
        ),
        ([ON_GPU], CHECKED, "not enough evidence", "Nothing was timed on the CPU"),
        ([], [], "not enough evidence", "Nothing was timed on the CPU"),
        ([ON_CPU], [], "not enough evidence", "No GPU was measured, and none was projected"),
    ],
)
def test_the_port_goes_only_where_what_was_timed_was_validated_at_that_size(run, timings, validations, verdict, why):
    result = changed(of(results(), "similarity"), timings=dumped(timings), validations=dumped(validations))
    found = decision(run, [result], "production")
    assert found.verdict == verdict
    assert why in found.why
    assert verdict == "go" or found.changes


def test_sizes_that_only_the_cpu_was_timed_at_are_a_condition(run):
    timings = [ON_CPU, timing("CPU tiles", 100_000, 90, 91, 92), ON_GPU]
    result = changed(of(results(), "similarity"), timings=dumped(timings), validations=dumped(CHECKED))
    assert "Up to 10,000 texts: 100,000 were timed on the CPU only." in decision(run, [result], "production").changes


def test_a_projection_of_zero_seconds_is_no_reason_to_fail(run):
    time = Quantity.projected(0.0, 0.1, "s", "T4", "launches")
    expected = [Expectation(n_texts=10_000, on_gpu=True, time=time)]
    result = changed(of(results(), "similarity"), timings=dumped([ON_CPU]), expectations=dumped(expected))
    found = decision(run, [result], "production")
    assert (found.verdict, found.why) == ("not enough evidence", "No GPU was measured, and none was projected.")
