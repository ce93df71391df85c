"""Chapter 50: its result, its sentence and its figures."""

import matplotlib.pyplot as plt
import pytest
from pydantic import ValidationError

from altlas_lib.results import DataSource, Kill, LoadPoint, Provenance, Quantity, ServingResult
from altlas_lib.serving import plots, summarize


def point(per_s, p95_s, *, batching=True, n_refused=0, spread=1.0):
    def quantity(value, unit="s"):
        return Quantity.measured([value / spread, value, value * spread], unit, "a CPU")

    percentiles = {name: quantity(p95_s * factor) for name, factor in (("p50", 0.5), ("p95", 1), ("p99", 2))} if p95_s else {}
    answered = quantity(per_s, "requests/s")
    return LoadPoint(batching=batching, offered_per_s=per_s, answered_per_s=answered, n_refused=n_refused, **percentiles)


def kill(**changes):
    restart = Quantity.measured([2.0], "s", "a CPU")
    return Kill(**{"state": "done", "tries": 2, "same_answer": True, "restart": restart} | changes)


def result(loads, wanted_per_s=100.0, **changes):
    return ServingResult(
        **{"provenance": Provenance.now({}), "finding": "found", "kill": kill(), "n_rows": 10} | changes,
        source=DataSource(name="texts", n_rows=10, sha256="0" * 64),
        n_dimensions=4,
        k=3,
        rows_per_request=8,
        latency_limit_s=0.1,
        wanted_per_s=wanted_per_s,
        bare=Quantity.measured([0.001], "s", "a CPU"),
        loads=loads,
    )


@pytest.mark.parametrize(
    ("loads", "sustained", "replicas"),
    [
        ([point(10, 0.01), point(20, 0.05), point(40, 0.3)], 20, 5),
        ([point(40, 0.05), point(10, 0.01), point(20, 0.3)], 10, 10),  # what holds above a rate that does not is chance
        ([point(10, 0.09, spread=1.5)], None, None),  # a run beyond the limit
        ([point(10, 0.01, n_refused=1)], None, None),
        ([point(10, None)], None, None),
        ([point(30, 0.01), point(60, 0.01, batching=False)], 30, 4),
    ],
)
def test_what_a_server_holds_and_how_many_it_takes(loads, sustained, replicas):
    found = result(loads)
    assert found.sustained_per_s() == sustained
    assert found.n_replicas == replicas


def test_without_batching_is_judged_by_the_loads_without_it():
    assert result([point(30, 0.01), point(20, 0.01, batching=False)]).sustained_per_s(batching=False) == 20


def test_it_is_saved_and_loaded(run):
    saved = result([point(10, 0.01)]).save(run)
    assert ServingResult.load(run) == saved
    with pytest.raises(ValidationError):
        result([point(10, 0.01)], n_rows=0)


def test_a_job_survives_only_with_the_same_answer():
    assert kill().survived
    assert not kill(same_answer=False).survived
    assert not kill(state="failed").survived


def test_the_finding_says_what_held_and_what_did_not():
    loads = [point(10, 0.01), point(20, 0.05), point(10, 0.02, batching=False), point(20, 0.9, batching=False)]
    said = summarize(loads, kill(), 0.1, 50)
    assert "20 requests per second within 100 ms (95 of 100), 10 without batching; 50 per second take 3 of them." in said
    assert said.endswith("was done all the same.")
    poor = summarize([point(10, 0.5)], kill(state="failed"), 0.1, 50)
    assert "not even the lowest rate" in poor
    assert poor.endswith("was lost.")


def test_figures_say_what_held(run):
    fig, (left, right) = plt.subplots(2)
    plots.latency_by_load(left, [point(10, 0.01), point(20, 0.2), point(10, 0.3, batching=False), point(20, None)], 0.1)
    assert left.get_title() == "Within the limit: 10 requests per second batched, 0 alone"
    metrics = "# TYPE altlas_batch_requests histogram\n" + "".join(
        f'altlas_batch_requests_bucket{{model="m",le="{le}"}} {count}\n' for le, count in (("1.0", 3), ("2.0", 4), ("+Inf", 4))
    )
    plots.batch_sizes(right, metrics)
    assert [bar.get_height() for bar in right.patches] == [3, 1, 0]
    assert right.get_title().startswith("75%")
    plt.close(fig)
