"""Decisions rest on evidence that exists: each case was written down with its verdict before the rule that gives it."""

import re
from pathlib import Path

import pytest
from test_report import CPU, GPU, HOSTILE, call, changed, decision, of, planned, results, seconds

from altlas_lib import report
from altlas_lib.report import decide
from altlas_lib.results import (
    CHAPTERS,
    Candidate,
    Kept,
    Quantity,
    Remedy,
    Route,
    Timing,
    Validation,
    Variant,
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


def busy(timing):
    return timing.model_copy(update={"other_load": 0.5})


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
        # other programs took half of the processors: the CPU's time is theirs
        ([busy(ON_CPU), ON_GPU], CHECKED, "not enough evidence", "Other programs slowed the CPU down"),
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
    found = decision(run, [result], "into production")
    assert found.verdict == verdict
    assert why in found.why
    assert verdict == "go" or found.changes


def test_sizes_that_only_the_cpu_was_timed_at_are_a_condition(run):
    timings = [ON_CPU, timing("CPU tiles", 100_000, 90, 91, 92), ON_GPU]
    result = changed(of(results(), "similarity"), timings=dumped(timings), validations=dumped(CHECKED))
    assert "Up to 10,000 texts: 100,000 were timed on the CPU only." in decision(run, [result], "into production").changes


def test_a_projection_of_zero_seconds_is_no_reason_to_fail(run):
    time = Quantity.projected(0.0, 0.1, "s", "T4", "launches")
    expected = [Timing(method="by arithmetic", on_gpu=True, n_texts=10_000, time=time)]
    result = changed(of(results(), "similarity"), timings=dumped([ON_CPU]), expectations=dumped(expected))
    found = decision(run, [result], "into production")
    assert (found.verdict, found.why) == ("not enough evidence", "No GPU was measured, and none was projected.")


def test_each_number_that_the_result_has_is_shown_and_no_other(run):
    machine = decision(run, [of(results(), "environment")], "machine ready")
    found = [(each.label, each.basis) for each in machine.evidence]
    assert found == [("matrix products on this CPU", "measured"), ("matrix products on a T4", "data sheet")]
    port = decision(run, [changed(of(results(), "hotspots"), candidates=dumped([candidate("port it", 2, 3)]))], "worth porting")
    assert [each.label for each in port.evidence] == ["the workload with f in service on a GPU", "share of the time in it"]
    assert "'missing'" not in repr(port)  # nor the facts that the sentences were made of


# The model -----------------------------------------------------------------------------------------------------------

OWN = {"preset": "reference", "n_seeds": 3}


def trained(low, high, *, best=None, errors=(-0.01, 0.01), **fields):
    training = of(results(), "training")
    accuracy = training.metrics[0].model_copy(
        update={
            **{"name": "accuracy at 1.5", "model": 0.65 + (low + high) / 2, "base_rate": 0.65},
            **{"gain_low": low, "gain_high": high, "best_possible": best, "n_samples": 2091},
        }
    )
    log_error = accuracy.model_copy(
        update={
            "name": "error of log value",
            "unit": "log",
            "higher_is_better": False,
            "gain_low": errors[0],
            "gain_high": errors[1],
        }
    )
    return changed(training, **OWN | fields, metrics=dumped([accuracy, log_error]))


@pytest.mark.parametrize(
    ("low", "high", "fields", "verdict", "why"),
    [
        (0.02, 0.08, {}, "go", "gains +5.0 points"),
        # 10,456 real rounds of a fair game: the whole interval lies below what matters
        (-0.002, 0.002, {}, "no-go", "gains +0.0 points"),
        (-0.08, -0.02, {}, "no-go", "gains -5.0 points"),
        (-0.01, 0.03, {}, "not enough evidence", "The interval does not say"),
        (0.005, 0.03, {}, "not enough evidence", "The interval does not say"),  # above 0, not above what matters
        # what was scored is not the user's own
        (0.06, 0.12, {"best": 0.77}, "not enough evidence", "generated"),
        (0.06, 0.12, {"data_kind": "generated, planted regime"}, "not enough evidence", "generated"),
        (0.06, 0.12, {"preset": "quick"}, "not enough evidence", "stands in"),
        # a small model that finds nothing on the user's own series is a no, though it could never be a go
        (-0.002, 0.002, {"preset": "quick"}, "no-go", "Do not train it"),
        (-0.01, 0.03, {"preset": "quick"}, "not enough evidence", "stands in"),
        (-0.002, 0.002, {"best": 0.65}, "not enough evidence", "nothing can be predicted"),
        (0.02, 0.08, {"n_seeds": 1}, "not enough evidence", "1 training"),
        (0.02, 0.08, {"constant_answer": "1.5 or more"}, "no-go", "one class always"),
        (-0.01, 0.03, {"constant_answer": "1.5 or more"}, "no-go", "one class always"),
        (0.02, 0.08, {"errors": (-0.2, -0.1)}, "go with conditions", "gains +5.0 points"),
    ],
)
def test_a_model_goes_only_on_data_and_a_model_of_the_users_own(run, low, high, fields, verdict, why):
    found = decision(run, [trained(low, high, **fields)], "worth training")
    assert found.verdict == verdict
    assert why in found.why
    assert verdict == "go" or found.changes


def test_the_card_says_which_data_which_model_and_how_many_trainings(run):
    source = {"name": "rounds.sqlite", "n_rows": 10456, "n_skipped": 2, "sha256": "0" * 64}
    found = decision(run, [trained(0.02, 0.08, source=source)], "worth training")
    assert found.about == "10,456 values from rounds.sqlite (2 damaged ones skipped), model reference, trainings: 3"


def test_errors_that_are_significantly_worse_are_said(run):
    found = decision(run, [trained(-0.002, 0.002, errors=(-0.2, -0.1))], "worth training")
    assert "Worse than without a model, beyond chance: error of log value." in found.changes
    quiet = decision(run, [trained(-0.002, 0.002)], "worth training")
    assert not any("Worse than" in change for change in quiet.changes)


def test_the_least_gain_that_matters_is_a_rule(run, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("predict: {least_gain: 0.0}")
    assert decision(run, [trained(0.005, 0.03)], "worth training", rules=rules).verdict == "go"


# Fitting -------------------------------------------------------------------------------------------------------------


def band(low, high):
    return Quantity.projected(low * 2**30, high * 2**30, "bytes", "T4", "what the compiler will fuse")


def projected(name, verdict, low, high):
    remedy = planned(name, verdict)
    return remedy.model_copy(update={"plan": remedy.plan.model_copy(update={"peak": band(low, high)})})


def measured(gib, device=GPU):
    return Quantity.measured([gib * 2**30] * 3, "bytes", device).model_dump()


@pytest.mark.parametrize(
    ("remedies", "fields", "verdict", "why"),
    [
        ([projected("reference", "fits", 8, 12)], {}, "not enough evidence", "only projected"),
        ([projected("reference", "undecided", 11, 24), projected("b", "fits", 8, 12)], {}, "not enough evidence", "projected"),
        ([planned("reference", "out of memory"), planned("b", "tight")], {}, "go with conditions", "without reserve: b"),
        ([planned("reference", "tight")], {}, "go with conditions", "without reserve: reference"),
        ([Remedy(name="reference", plan=None, problem="x"), planned("b", "fits")], {}, "go with conditions", "with: b"),
        # what ran counts more than what was planned
        ([planned("reference", "out of memory")], {"peak_memory": measured(13)}, "go", "It ran on a T4: 13 GiB"),
        ([planned("reference", "out of memory")], {"peak_memory": measured(13, "H200")}, "no-go", "No remedy makes it fit"),
        ([planned("other", "out of memory")], {"peak_memory": measured(13)}, "no-go", "No remedy makes it fit"),
        ([], {"peak_memory": measured(13)}, "go", "It ran on a T4"),
        (
            [planned("reference", "fits")],
            {"peak_memory": measured(13), "micro_batch_size": 4, "asked": 8},
            "go with conditions",
            "in micro-batches of 4; 8 ran out of memory",
        ),
    ],
)
def test_a_training_fits_by_what_ran_then_by_what_was_compiled(run, remedies, fields, verdict, why):
    training = of(results(), "training")
    asked = fields.pop("asked", 8)
    of_own = {"gpu": "T4", "preset": "reference", "micro_batch_size_asked": asked, "remedies": dumped(remedies)}
    found = decision(run, [changed(training, **of_own | fields)], "fit the GPU")
    assert found.verdict == verdict
    assert why in found.why


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("out of memory", "reference: batch 40 fits, 64 does not."),
        ("tight", "reference: batch 40 fits, 64 only without reserve."),
        ("undecided", "reference: batch 40 fits, 64 is open."),
        ("fits", "reference: batch 64 fits."),
    ],
)
def test_a_batch_does_not_fit_only_where_it_does_not(run, verdict, sentence):
    training = of(results(), "training")
    remedies = [planned("reference", verdict, largest=40), planned("b", "fits")]
    assert sentence in decision(run, [changed(training, remedies=dumped(remedies))], "fit the GPU").changes


def test_a_plan_without_a_batch_size_is_no_reason_to_fail(run):
    remedy = planned("reference", "fits", largest=8)
    bare = remedy.model_copy(update={"plan": remedy.plan.model_copy(update={"configuration": {}})})
    assert decision(run, [changed(of(results(), "training"), remedies=dumped([bare]))], "fit the GPU").verdict == "go"


# Porting -------------------------------------------------------------------------------------------------------------


def candidate(advice, low=None, high=None, *, share=0.5, workload="service", function="f", routes=()):
    gain = Quantity.projected(low, high, "x", "T4", "transfers") if low else None
    return Candidate(
        **{"workload": workload, "function": function, "share": share, "largest_gain": None, "reason": "r", "advice": advice},
        **{"gain": gain, "workload_gain": gain, "routes": list(routes)},
    )


def route(kind, standing, *samples, same=True):
    gain = Quantity.measured(samples, "x", CPU) if samples else None
    return Route(kind=kind, name="pairs_above", standing=standing, gain=gain, same_answer=same if samples else None, why="w")


FASTER = route("algorithm", "measured", 3.0, 3.1, 3.2)


@pytest.mark.parametrize(
    ("candidates", "verdict", "why"),
    [
        ([candidate("leave it", 1.1, 3.0)], "no-go", "Nothing is to be ported"),
        (
            [candidate("vectorise first", 1.1, 3.0)],
            "no-go",
            "A cheaper way on the CPU comes first: f in service: vectorise first",
        ),
        (
            [candidate("change the call", 2.0, 3.0)],
            "no-go",
            "A cheaper way on the CPU comes first: f in service: change the call",
        ),
        (
            [candidate("port it", 2.0, 3.0, routes=[FASTER])],
            "no-go",
            "With pairs_above in place of f in service",
        ),
        # another answer, too little, not measured: no cheaper way
        ([candidate("port it", 2.0, 3.0, routes=[route("algorithm", "measured", 3, 3, 3, same=False)])], "go", "Port f"),
        ([candidate("port it", 2.0, 3.0, routes=[route("algorithm", "measured", 1, 1.1, 3)])], "go", "Port f"),
        ([candidate("port it", 2.0, 3.0, routes=[route("algorithm", "offered")])], "go", "Port f"),
        ([candidate("port it", 2.0, 3.0, routes=[route("CuPy port", "measured", 3, 3, 3)])], "go", "Port f"),
        # in another workload it takes nothing away; in the same one the profile changes first
        ([candidate("vectorise first"), candidate("port it", 2.0, 3.0, workload="w", function="g")], "go", "Port g in w"),
        ([candidate("vectorise first"), candidate("port it", 2.0, 3.0, function="g")], "no-go", "comes first: f in service"),
        ([candidate("try the drop-in", 2.0, 3.0)], "go with conditions", "f in service may gain 2x to 3x: try the drop-in"),
        ([candidate("write a kernel", 2.0, 3.0)], "go with conditions", "f in service may gain 2x to 3x: write a kernel"),
        ([candidate("port it", 1.1, 1.2)], "no-go", "No function makes its workload 1.5 times as fast"),
        ([candidate("unknown"), candidate("vectorise first")], "no-go", "comes first"),
        ([candidate("unknown", 1.1, 9.0)], "not enough evidence", "Too little was seen"),
    ],
)
def test_a_cheaper_way_on_the_cpu_comes_before_a_port(run, candidates, verdict, why):
    hotspots = changed(of(results(), "hotspots"), candidates=dumped(candidates))
    found = decision(run, [hotspots], "worth porting")
    assert found.verdict == verdict
    assert why in found.why
    assert verdict == "go" or found.changes


# The table -----------------------------------------------------------------------------------------------------------


def test_every_condition_of_the_table_is_a_fact(run):
    """A name that no result makes a fact of would never hold, and nobody would see it."""
    facts = {}
    cases = [*results(), *results(gpu=True), trained(0.02, 0.08)]
    for result in cases:
        for asked in decide.load_tables().questions:
            if asked.chapter == result.chapter:
                found = decide.find_facts(asked.key, asked.facts, result, decide.Rules.load())
                facts.setdefault(asked.question, set()).update(found)
    for asked in decide.load_tables().questions:
        rows = [*asked.evidence, *asked.answers]
        named = {name.removeprefix("not ") for row in rows for name in row.when}
        changes = [change for row in (asked, *asked.answers) for change in row.changes]
        named |= {name for change in changes if isinstance(change, dict) for name in change}
        named |= {change[1:] for change in changes if isinstance(change, str) and change.startswith("*")}
        sentences = [text for change in changes for text in (change.values() if isinstance(change, dict) else [change])]
        sentences += [asked.about, *(row.label for row in asked.evidence), *(row.why for row in asked.answers)]
        named |= {name for text in sentences for name in re.findall(r"{(\w+)}", text)}
        assert named <= facts[asked.question], asked.question


def test_every_chapter_has_its_rows_and_its_template():
    tables = decide.load_tables()
    assert list(tables.chapters) == [chapter.chapter for chapter in CHAPTERS]
    assert {asked.chapter for asked in tables.questions} | tables.reads.keys() <= tables.chapters.keys()
    assert sorted(tables.next_steps) == sorted(asked.key for asked in tables.questions)
    templates = Path(decide.__file__).parent / "templates"
    assert all((templates / f"_{chapter}.html.j2").is_file() for chapter in tables.chapters)


def test_no_answer_but_go_is_a_dead_end():
    for asked in decide.load_tables().questions:
        for answer in asked.answers:
            sure = [change for change in answer.changes if isinstance(change, str) and change != "*limits"]
            assert answer.verdict == "go" or sure, (asked.question, answer.why)
        assert not asked.answers[-1].when, "the last answer of a table holds always"


# Which form goes to production ----------------------------------------------------------------------------------------


def form(low=None):
    kept = low and Kept(value=1, low=low, high=1.01)
    return Variant(name="float16", file="model.fp16.onnx", size_bytes=1, score_kept=kept)


@pytest.mark.parametrize(
    ("low", "times", "fields", "verdict", "why"),
    [
        # 0.95 * 10 ms / (1.05 * 4 ms) = 2.3 and 1.05 * 10 / (0.95 * 4) = 2.8 by hand
        (0.995, (100, 10, 4), {}, "go", "float16: 2.3x to 2.8x as fast as ONNX in float32 on this CPU, and at least 99.5 % of"),
        (0.98, (100, 10, 4), {}, "go", "ONNX in float32: 9x to 11x as fast as Keras predict"),  # 2 % of the score may be lost
        (0.995, (100, 10, 9.9), {}, "go", "ONNX in float32: 9x to 11x as fast as Keras predict"),
        (0.995, (10, 10, 9.9), {}, "no-go", "The model stays as it is"),
        (None, (100, 10, 4), {}, "not enough evidence", "No form was scored"),
        (0.995, (100, 10, 4), {"trained": False}, "not enough evidence", "The model is untrained"),
        (0.995, (100, 10, 4), {"other_load": 0.5}, "not enough evidence", "Other programs slowed the CPU down"),
        (0.995, None, {}, "no-go", "The model stays as it is"),
    ],
)
def test_a_form_goes_to_production_only_where_it_is_faster_and_keeps_the_score(run, low, times, fields, verdict, why):
    latencies = [call(name, ms / 1000) for name, ms in zip(("Keras predict", "float32", "float16"), times or (), strict=False)]
    variants = [Variant(name="float32", file="model.onnx", size_bytes=2), form(low)]
    result = changed(of(results(), "inference"), variants=dumped(variants), latencies=dumped(latencies), **fields)
    found = decision(run, [result], "Which form")
    assert (found.verdict, found.why[: len(why)]) == (verdict, why)


# Files that nobody's chapter wrote ------------------------------------------------------------------------------------


def mutated(value, replace):
    """Every quantity in a result's JSON replaced, wherever it stands."""
    if isinstance(value, dict):
        if "basis" in value and "unit" in value:
            return replace(value)
        return {name: mutated(each, replace) for name, each in value.items()}
    return [mutated(each, replace) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "replace",
    [
        lambda quantity: {"value": 1.0, "unit": quantity["unit"], "device": "?", "basis": "compiled"},
        lambda quantity: {"low": 0.0, "high": 1.0, "unit": "x", "device": "?", "basis": "projected", "bound_by": "?"},
        lambda quantity: quantity | {"low": -1e300, "value": -1e300, "high": 1e300, "basis": "measured", "n_runs": 1},
        lambda quantity: {
            "low": 0,
            "value": 0,
            "high": 0,
            "unit": HOSTILE,
            "device": HOSTILE,
            "basis": "measured",
            "n_runs": 9,
        },
    ],
)
def test_quantities_of_any_basis_and_size_are_reported(run, replace):
    """A file that the schema lets through, and that no chapter would write, is shown and never a traceback."""
    for result in results(gpu=True):
        type(result).model_validate(mutated(result.model_dump(), replace)).save(run)
    page = report.render_report(run)[0].read_text()
    assert "<script" not in page.replace("&lt;script", "")


def test_results_without_devices_candidates_timings_and_metrics_are_reported(run):
    empty = {
        "timings": [],
        "validations": [],
        "candidates": [],
        "workloads": [],
        "metrics": [],
        "remedies": [],
        "history": [],
        "loads": [],
    }
    for result in results():
        fields = {name: value for name, value in empty.items() if name in type(result).model_fields}
        nobody = result.provenance.model_copy(update={"devices": []})
        changed(result, provenance=nobody.model_dump(), **fields).save(run)
    assert len(report.Report.read(run).decisions) == 7
    assert report.render_report(run)


# Serving ---------------------------------------------------------------------------------------------------------------


def served(*, wanted=50.0, seconds=0.02, **fields):
    saved = of(results(), "serving")
    slow = {name: Quantity.measured([seconds], "s", "a CPU").model_dump() for name in ("p50", "p95", "p99")}
    loads = [load.model_dump() | slow for load in saved.loads]
    return changed(saved, wanted_per_s=wanted, loads=loads, **fields)


@pytest.mark.parametrize(
    ("fields", "verdict", "why"),
    [
        ({"wanted": 30.0}, "go", "One replica holds 40"),
        ({}, "go with conditions", "take 2 replicas of this machine: one holds 40"),
        ({"seconds": 0.3}, "no-go", "Not even 40"),
        ({"other_load": 0.5}, "not enough evidence", "Other programs slowed the CPU down"),
        ({"kill": {"state": "failed", "tries": 3, "same_answer": False}}, "no-go", "did not come back"),
    ],
)
def test_whether_it_can_be_served_follows_from_load_and_kill(run, fields, verdict, why):
    if "kill" in fields:
        restart = of(results(), "serving").kill.restart.model_dump()
        fields = fields | {"kill": fields["kill"] | {"restart": restart}}
    found = decision(run, [served(**fields)], "served")
    assert found.verdict == verdict
    assert why in found.why
    if verdict.startswith("go"):
        assert any("rows per second of this CPU, for large requests. It was not run." in change for change in found.changes)
