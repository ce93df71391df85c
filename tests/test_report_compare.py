"""Two runs side by side, and the what-if panel: ratios by hand, noise that is no change, the library's own models."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_report import CPU, HOSTILE, changed, of, results

from altlas_lib import cli, paths, report, similarity
from altlas_lib.devices import find_gpu
from altlas_lib.report.bands import Band
from altlas_lib.report.compare import Change, quantities
from altlas_lib.results import Quantity, format_value
from altlas_lib.training.plan import planner

TIMES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6)


def saved(name, these):
    run = paths.run_folder(name)
    for result in these:
        result.save(run)
    return run


def timed(result, *samples, at=0):
    timings = [timing.model_dump() for timing in result.timings]
    timings[at]["time"] = Quantity.measured(samples, "s", CPU).model_dump()
    return changed(result, timings=timings)


# Comparing -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(one=TIMES, two=TIMES)
@example(one=[1.0, 2.0, 2.0], two=[2.0, 2.0, 3.0])  # ranges that touch are not apart
@example(one=[2.0, 2.0, 3.0], two=[1.0, 2.0, 2.0])
def test_a_ratio_is_claimed_only_where_the_runs_do_not_overlap(one, two):
    first, second = (Quantity.measured(samples, "s", CPU) for samples in (one, two))
    change = Change("similarity", "time", first, second)
    ratio = Band.of(second).over(Band.of(first))
    assert (ratio.low, ratio.high) == pytest.approx((min(two) / max(one), max(two) / min(one)))
    apart = max(one) < min(two) or max(two) < min(one)
    assert change.sure == (apart and min(len(one), len(two)) >= 3)
    assert change.verdict.endswith("x") == change.sure
    ends = dict.fromkeys(format_value(end, "x") for end in (ratio.low, ratio.high))
    assert change.verdict == " to ".join(ends) or not change.sure


def test_what_changed_is_told_first_and_noise_is_not_a_change(run):
    similarity_result = of(results(), "similarity")
    before = saved("before", [timed(similarity_result, 1.0, 1.1, 1.2), of(results(), "environment")])
    after = saved("after", [timed(similarity_result, 0.4, 0.5, 0.6), of(results(), "environment")])
    noise = saved("noise", [timed(similarity_result, 1.05, 1.15, 1.3)])
    text = report.format_comparison(report.compare_runs(before, after))
    assert re.search(r"timings \[NumPy, row blocks, 1,000 texts, with transfers\] time\n +1.1 s -> 500 ms +0.33x to 0.6x", text)
    assert "similarity: 1 of 1 surely changed" in text
    quiet = report.format_comparison(report.compare_runs(before, noise))
    assert "similarity: 0 of 1 surely changed" in quiet
    assert "timings" not in quiet
    assert "within the noise" in report.format_comparison(report.compare_runs(before, noise), everything=True)
    assert "! no environment result in run 'noise'" in quiet
    assert {each.chapter for each in report.compare_runs(noise, before).changes} == {"similarity", "decisions"}


def test_what_the_runs_were_made_with_is_told_before_their_numbers(run):
    one, two = (of(results(gpu=gpu), "similarity") for gpu in (False, True))
    source = two.source.model_copy(update={"sha256": "1" * 64})
    provenance = two.provenance.model_copy(update={"git_commit": "2" * 40, "parameters": {"texts": "other"}})
    two = changed(two, source=source.model_dump(), provenance=provenance.model_dump())
    text = report.format_comparison(report.compare_runs(saved("laptop", [one]), saved("server", [two])))
    for difference in (
        "* similarity: devices = 'AMD EPYC (2 threads)' and 'AMD EPYC (2 threads); Tesla T4'",
        "* similarity: data = 'plain (0000000000)' and 'plain (1111111111)'",
        "and '2222222222'",
        "* similarity: texts = 'plain' and 'other'",
    ):
        assert difference in text
    assert "only in the second" in text  # the GPU's time


def test_a_band_and_a_measurement_are_not_set_against_each_other():
    band, time = Quantity.projected(1, 2, "s", "T4", "memory"), Quantity.measured([5, 5, 5], "s", "T4")
    assert Change("similarity", "time", band, time).verdict == "measured beside projected"
    assert Change("similarity", "time", time, band).verdict == "projected beside measured"


def test_numbers_of_two_units_have_no_ratio():
    of_units = [Quantity.measured([n] * 3, unit, CPU) for n, unit in ((5, "s"), (7, "rows/s"))]
    for first, second in (of_units, of_units[::-1]):
        assert Change("similarity", "time", first, second).verdict == "changed"


def test_an_error_below_its_base_rate_has_the_interval_that_its_gain_leaves():
    """A gain of 0.1 to 0.3 over an error of 1.0 is an error of 0.7 to 0.9; the log's loss is that of its last epoch."""
    training = of(results(), "training")
    error = {"higher_is_better": False, "model": 0.8, "base_rate": 1.0, "gain_low": 0.1, "gain_high": 0.3, "n_samples": 50}
    epochs = [training.history[0].model_copy(update={"metrics": {"loss": loss}}).model_dump() for loss in (3.0, 2.0)]
    metric = training.metrics[0].model_copy(update=error)
    found = dict(quantities(changed(training, metrics=[metric.model_dump()], history=epochs)))
    score = found[f"metrics [{metric.name}]"]
    assert (score.low, score.value, score.high, score.n_runs) == (pytest.approx(0.7), 0.8, pytest.approx(0.9), 50)
    assert [value.value for name, value in found.items() if name.endswith("metrics loss")] == [2.0]
    ((_, of_nothing),) = quantities(metric.model_copy(update={"n_samples": 0}))
    assert of_nothing.n_runs == 1  # a file that says so is compared all the same


def test_all_that_is_compared_has_a_name_of_its_own(run):
    for result in results(gpu=True):
        names = [name for name, _ in quantities(result)]
        assert len(names) == len(set(names))
        measured = sum(isinstance(value, Quantity) for _, value in quantities(result))
        scores = len(getattr(result, "metrics", ())) + sum(len(each.metrics) for each in getattr(result, "qualities", ()))
        losses = sum(len(each.metrics) for each in getattr(result, "history", ())[-1:])
        own = re.findall('"basis":"(?:measured|compiled|projected)"', result.model_dump_json())
        assert measured - scores - losses == len(own)


def scored(model, low, high, **fields):
    training = of(results(), "training")
    score = {"name": "accuracy at 1.5", "model": model, "base_rate": 0.65, "n_samples": 2091}
    metric = training.metrics[0].model_copy(update=score | {"gain_low": low, "gain_high": high})
    return changed(training, **fields, preset="reference", n_seeds=3, metrics=[metric.model_dump()])


def test_accuracies_losses_batches_and_verdicts_are_compared(run):
    """0.70 with 0.68 to 0.72 beside 0.60 with 0.58 to 0.62: apart, hence a change; 0.59 to 0.71 is not."""
    good = saved("good", [scored(0.70, 0.03, 0.07)])
    bad = saved("bad", [scored(0.60, -0.07, -0.03, micro_batch_size=4)])
    text = report.format_comparison(report.compare_runs(good, bad))
    assert re.search(r"metrics \[accuracy at 1.5\]\n +0.7 share -> 0.6 share +0.81x to 0.91x", text)
    assert re.search(r"micro batch size\n +8 -> 4 +changed", text)
    assert re.search(r"Is the model worth training\?\n +go -> no-go +changed", text)
    noise = saved("noise", [scored(0.65, -0.06, 0.06)])
    assert "metrics [accuracy at 1.5]" not in report.format_comparison(report.compare_runs(good, noise))
    epoch = of(results(), "training").history[0].model_copy(update={"metrics": {"loss": 2.0}})
    other = saved("other", [scored(0.70, 0.03, 0.07, history=[epoch.model_dump()])])
    text = report.format_comparison(report.compare_runs(good, other))
    assert re.search(r"metrics loss\n +1 -> 2 +too few runs to say", text)


def test_two_machines_of_one_name_are_told_apart_by_what_they_measured(run):
    environment = of(results(), "environment")

    def rated(*rates):
        rate = Quantity.measured(rates, "GFLOP/s", CPU).model_dump()
        return changed(environment, ceilings=environment.ceilings.model_dump() | {"cpu_matmul_float32": rate})

    rates = {"a": (200, 210, 220), "b": (80, 85, 90), "c": (190, 205, 215)}
    runs = [saved(name, [rated(*these)]) for name, these in rates.items()]
    text = report.format_comparison(report.compare_runs(runs[0], runs[1]))
    assert "environment: the machines have the same name and are not the same: ceilings cpu matmul float32 210 GFLOP/s" in text
    assert "not the same" not in report.format_comparison(report.compare_runs(runs[0], runs[2]))
    for name in ("A CPU", "ZX81"):  # another machine, before and after this one's name: that the rates differ is no riddle
        provenance = environment.provenance.model_copy(update={"devices": [name]}).model_dump()
        other = saved("other", [changed(rated(80, 85, 90), provenance=provenance)])
        assert "not the same" not in report.format_comparison(report.compare_runs(runs[0], other))


def test_control_characters_of_a_hostile_name_do_not_reach_the_terminal(run):
    one, two = saved("one", results("a")), saved("two", results("\x1b[2Jcleared\x07"))
    text = report.format_comparison(report.compare_runs(one, two))
    assert "cleared" in text
    assert not {"\x1b", "\x07"} & set(text)


def test_entries_that_say_the_same_of_themselves_are_told_apart(run):
    result = of(results(), "similarity")
    doubled = changed(result, timings=[timing.model_dump() for timing in result.timings * 2])
    assert [name for name, _ in quantities(doubled) if "#2" in name]


def test_the_command_compares_runs_and_names_those_there_are(run, capsys):
    saved("one", results(HOSTILE)), saved("two", results(HOSTILE))
    with pytest.raises(SystemExit) as ended:
        cli.app(["compare", "one", "two"])
    assert ended.value.code == 0
    assert "one beside two" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.app(["compare", "one", "../three"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "no run '../three'" in error
    assert "one, two" in error.replace("test, ", "")


def test_a_result_of_an_older_schema_is_refused_with_the_reason(run):
    one, two = saved("one", results()), saved("two", results())
    (two.results / "similarity.json").write_text('{"schema_version": 0}')
    comparison = report.compare_runs(one, two)
    assert ["schema_version: Input should be 4, got 0" in problem for problem in comparison.problems] == [True]
    assert "similarity" not in {change.chapter for change in comparison.changes}


# What if -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ceilings():
    return of(results(), "environment").ceilings.model_copy(
        update={"cpu_matmul_float32": Quantity.measured([200.0, 220.0, 240.0], "GFLOP/s", CPU)}
    )


@pytest.mark.parametrize("gpu", ["T4", "H200"])
@pytest.mark.parametrize("n_texts", [10, 10_000, 1_000_000])
def test_the_sliders_show_the_librarys_own_projection(run, ceilings, gpu, n_texts):
    found = report.WhatIf(gpu, n_texts, 384, 64, ceilings=ceilings)
    expected = {each.on_gpu: each.time for each in similarity.expected_times([n_texts], 384, 10, find_gpu(gpu), ceilings)}
    assert found.times(n_texts) == (expected[False], expected[True])
    even = found.break_even_n_texts
    surely = {n: report.WhatIf(gpu, n, 384, 64, ceilings=ceilings) for n in (round(even / 1.1), round(even * 1.1))}
    both = [found.times(n) for n, found in surely.items()]
    assert [on_gpu.high < on_cpu.low for on_cpu, on_gpu in both] == [False, True]


def test_memory_comes_from_plans_that_ship_and_waits_for_no_compiler(run, monkeypatch):
    compiled = []

    monkeypatch.setattr(planner, "compile_steps", lambda requests, **options: compiled.extend(requests))
    unknown, shipped = (report.WhatIf("T4", 100, 64, batch_size) for batch_size in (9, 64))
    assert (unknown.times(100)[0], unknown.break_even_n_texts) == (None, None)
    assert "not compiled yet" in dict(unknown.rows())["training in batches of 9"]
    assert shipped.plan.verdict == "out of memory"
    assert "out of memory: 17.7 GiB (compiled for T4)" in dict(shipped.rows())["training in batches of 64"]
    assert not compiled


def test_what_cannot_be_meant_is_refused(run):
    with pytest.raises(ValueError, match="not in the catalogue"):
        report.WhatIf("T5", 100, 64, 8)
    with pytest.raises(ValueError, match="0 texts of 64 dimensions: expected 1 or more"):
        report.WhatIf("T4", 0, 64, 8)
    with pytest.raises(ValueError, match="batch_size is 0"):
        report.WhatIf("T4", 10, 64, 0)


def test_the_panel_moves_with_its_sliders(run, ceilings):
    pytest.importorskip("ipywidgets")
    panel = report.panel(ceilings)
    gpu, n_texts, _, batch_size, *_ = panel.children
    assert "10,000 texts, T4" in panel.result.to_html()
    gpu.value, n_texts.value = "H200", 1_000_000
    assert "1,000,000 texts, H200" in panel.result.to_html()
    assert "not compiled yet" not in panel.result.to_html()  # the preset's own batch is in what ships
    batch_size.value = 128
    assert "not compiled yet" in panel.result.to_html()


def test_without_any_measurement_of_the_cpu_the_answer_is_unknown(run):
    """It was "surely wins at no size below ten million": an unknown CPU is never a fast one."""
    found = report.WhatIf("T4", 10_000, 384, 64)
    rows = dict(found.rows())
    assert rows["10,000 texts, this CPU"] == "unknown"
    assert rows["the GPU surely wins"].startswith("unknown: nothing of this CPU was measured")


def test_cpu_times_that_chapter_20_measured_count_more_than_the_ceilings(run, ceilings):
    result = changed(timed(of(results(), "similarity"), 1.0, 1.1, 1.2), n_dimensions=384)
    there = report.WhatIf("T4", 1000, 384, 64, ceilings=ceilings, similarity=result)
    assert there.times(1000)[0] == result.timings[0].time
    twice = report.WhatIf("T4", 2000, 384, 64, ceilings=ceilings, similarity=result)
    on_cpu, _ = twice.times(2000)
    assert (on_cpu.basis, on_cpu.low, on_cpu.high) == ("projected", 4.0, pytest.approx(4.8))
    assert twice.break_even_n_texts < report.WhatIf("T4", 2000, 384, 64, ceilings=ceilings).break_even_n_texts
    other = report.WhatIf("T4", 1000, 768, 64, ceilings=ceilings, similarity=result)
    assert other.times(1000) == report.WhatIf("T4", 1000, 768, 64, ceilings=ceilings).times(1000)
