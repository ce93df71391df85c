"""The one answer, what it costs and saves, GPUs side by side, numbers as each language writes them: by hand, then rendered."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from test_report import GPU, HOSTILE, PIXEL, Page, changed, of, planned, results
from test_report_decisions import ON_CPU, ON_GPU, candidate, checked, dumped, route, trained

from altlas_lib import figures, report, similarity
from altlas_lib.report import costs
from altlas_lib.report.bands import Band
from altlas_lib.report.language import Language
from altlas_lib.report.rules import Rules
from altlas_lib.results import Quantity, Route, SimilarityResult
from altlas_lib.similarity import plots


def saved(run, *these):
    for result in these:
        result.save(run)
    return run


def searched(gpu=True, **fields):
    timings = [ON_CPU, ON_GPU] if gpu else [ON_CPU]
    valid = [checked("CPU tiles", 10_000), checked("GPU tiles", 10_000, gpu=True)]
    return changed(of(results(), "similarity"), timings=dumped(timings), validations=dumped(valid), **fields)


# The one answer ------------------------------------------------------------------------------------------------------


def hotspots(*candidates):
    return changed(of(results(), "hotspots"), candidates=dumped(candidates))


@pytest.mark.parametrize(
    ("these", "verdict", "first"),
    [
        # nothing is there: everything is run
        ([], "measure next", "altlas run --run test --only 00 --only 10 --only 20 --only 30 --only 40 --only 50 --only 90"),
        # measured and validated on a GPU
        ([searched()], "do now", "altlas run --run test --only 00 --only 10 --only 30 --only 40 --only 50 --only 90"),
        # a cheaper way on the CPU, measured: nothing is bought for it
        ([hotspots(candidate("port it", 2.0, 3.0, routes=[route("algorithm", "measured", 3, 3.1, 3.2)]))], "do now", None),
        ([hotspots(candidate("vectorise first"))], "do not buy yet", None),
        # the GPU was not measured, and the projection leaves it open
        ([of(results(), "hotspots"), searched(gpu=False)], "measure next", None),
        # nothing needs a GPU
        (
            [
                hotspots(candidate("leave it")),
                changed(searched(), timings=dumped([ON_CPU, ON_GPU.model_copy(update={"time": ON_CPU.time})])),
                trained(-0.002, 0.002),
            ],
            "do not buy yet",
            None,
        ),
        # the model predicts and fits
        (
            [
                hotspots(candidate("leave it")),
                changed(searched(), timings=dumped([ON_CPU, ON_GPU.model_copy(update={"time": ON_CPU.time})])),
                changed(trained(0.02, 0.08), remedies=dumped([planned("reference", "fits")])),
            ],
            "do now",
            None,
        ),
    ],
)
def test_there_is_one_answer_with_a_next_step(run, these, verdict, first):
    found = report.Report.read(saved(run, *these)).overall
    assert found.verdict == verdict
    if first:
        assert found.steps[0].command == first
        assert re.fullmatch(r"about \d+ min", found.steps[0].minutes)
    page = Page(report.render_report(run)[0].read_text()).text
    assert page.index(verdict) < page.index("Is this machine ready?")
    open_questions = [each for each in report.Report.read(run).decisions if each.verdict == "not enough evidence"]
    assert all(any(each.question in step.decides for step in found.steps) for each in open_questions)


def test_a_machine_that_can_run_the_book_says_nothing_against_the_search(run):
    assert report.Report.read(saved(run, of(results(), "environment"), searched())).overall.verdict == "do now"


def test_a_workload_that_costs_more_on_a_gpu_says_nothing_against_the_search(run):
    """At five times the price of an hour twice as fast is a loss, eight times as fast is none."""
    rules = Rules.load(None, **OWN)
    saved(run, hotspots(candidate("leave it", 1.9, 2.0, workload="plain", function="plain")), searched())
    read = report.Report.read(run, rules=rules)
    of_workload, of_search = costs.savings(read.results, rules.money)
    assert of_workload.money.high < 0 < of_search.money.low
    assert read.overall.verdict == "do now"


def test_a_machine_that_cannot_run_the_book_is_repaired_first(run):
    environment = changed(of(results(), "environment"), ready=False)
    found = report.Report.read(saved(run, environment, searched())).overall
    assert (found.verdict, "cannot run" in found.why) == ("measure next", True)


def test_the_next_step_says_where_how_long_and_what_it_decides(run):
    finished = {"parameters": {}, "notebook_sha256": "", "finished_at": "2026-01-01T00:00:00Z"}
    took = {"20_cupy_poc": finished | {"duration_s": 1734}, "90_report": finished | {"duration_s": 30}}
    (run.path / "run.json").write_text(json.dumps({"finished": took}))
    step = report.Report.read(saved(run, *results())).overall.steps[0]
    assert step.command == "altlas run --run test --only 20 --only 90"
    assert (step.where, step.minutes) == ("on a machine with a T4", "about 29 min")  # 1734 + 30 s are 29.4 minutes
    assert step.decides == "Does the GPU port go into production?"


def test_the_ways_to_make_a_function_faster_stand_side_by_side(run):
    """Numba, RAPIDS and CuPy in the order of their cost, each with how it is known; what nobody timed is unknown, not zero."""
    ways = [
        route("algorithm", "measured", 3, 3.1, 3.2),
        Route(kind="drop-in library", name="cuml.accel", standing="offered on conditions", why=HOSTILE),
        Route(kind="CuPy port", name="CuPy", standing="projected", gain=Quantity.projected(2, 3, "x", "T4", "memory"), why="w"),
        Route(kind="kernel of your own", name="numba.cuda", standing="absent", why="w"),
    ]
    page = report.render_report(saved(run, hotspots(candidate("port it", 2.0, 3.0, routes=ways))))[0].read_text()
    text = " ".join(Page(page).text.split())
    places = [text.index(way) for way in ("pairs_abovemeasured3.1x", "cuml.acceloffered on conditionsunknown not compared")]
    places += [text.index("CuPyprojected2x to 3x"), text.index("numba.cudaabsentunknown")]
    assert places == sorted(places)
    assert "script" not in Page(page).tags


# Money and energy ----------------------------------------------------------------------------------------------------

OWN = {"price_per_hour": ["CPU=0.1", "Tesla T4=0.5"], "runs_per_day": 240, "person_days": 10, "price_per_kwh": 0.2}


def test_savings_are_what_the_hand_says(run):
    """10,000 texts: 1 to 1.2 s on the CPU, 0.1 to 0.12 s on the T4; 240 runs a day are 7,300 a month."""
    (found,) = costs.savings({"similarity": searched()}, Rules.load(None, **OWN).money)
    hours = 7300 / 3600
    assert (found.hours.low, found.hours.high) == pytest.approx((0.88 * hours, 1.1 * hours))
    # 100 W of CPU; 100 W and the T4's 70 W
    assert (found.kwh.low, found.kwh.high) == pytest.approx(((0.1 - 0.12 * 0.17) * hours, (0.12 - 0.1 * 0.17) * hours))
    low, high = 0.1 * hours - 0.5 * 0.12 * hours + 0.2 * found.kwh.low, 0.12 * hours - 0.5 * 0.1 * hours + 0.2 * found.kwh.high
    assert (found.money.low, found.money.high) == pytest.approx((low, high))
    assert found.break_even_months == pytest.approx((10 * 500 / high, 10 * 500 / low))
    assert found.own_prices
    assert found.basis == "measured"


def test_a_gpu_that_costs_more_than_it_saves_is_not_bought(run):
    """Ten times as fast at twenty times the price loses cents a month; only where the user gave both prices."""
    dear = Rules.load(None, price_per_hour=["CPU=0.1", "T4=2"], runs_per_day=240)
    saved(run, searched())
    assert report.Report.read(run, rules=dear).overall.verdict == "do not buy yet"
    examples = Rules.load(None)
    assert report.Report.read(run, rules=examples).overall.verdict == "do now"
    (found,) = costs.savings({"similarity": searched()}, dear.money)
    assert found.break_even_months == (None, None)
    page = Page(report.render_report(run, rules=dear)[0].read_text()).text
    assert "never" in page


def test_examples_are_called_examples_and_own_prices_are_not(run):
    saved(run, searched())
    page = Page(report.render_report(run)[0].read_text()).text
    assert "Examples, not yours: cpu_power_w, currency, person_days, price_per_hour" in page
    own = Page(report.render_report(run, rules=Rules.load(None, **OWN))[0].read_text()).text
    assert "Examples, not yours: cpu_power_w, currency, price_per_person_day" in own


def test_own_prices_come_from_a_file_and_from_parameters_and_leave_the_other_examples(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("money: {price_per_hour: {Tesla T4: 0.3, L4: 0.7}, person_days: 9}\npredict: {least_gain: 0.02}")
    money = Rules.load(file, price_per_hour=["L4=0.6"], runs_per_day=7).money
    assert [money.price_per_hour[name] for name in ("T4", "L4", "CPU")] == [0.3, 0.6, 0.17]
    assert (money.person_days, money.runs_per_day) == (9, 7)
    assert money.given == {"price_per_hour", "person_days", "runs_per_day", "T4", "L4"}
    assert not Rules.load(None).money.given


def test_a_rule_by_which_no_training_fits_is_refused(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("fit: {accepted_verdicts: []}")
    with pytest.raises(ValueError, match=r"fit\.accepted_verdicts: .* got \[\]"):
        Rules.load(file)


def test_prices_that_cannot_be_meant_are_refused():
    for given, message in (
        ({"price_per_hour": ["T5=1"]}, "GPU 'T5' is not in the catalogue"),
        ({"price_per_hour": ["T4=cheap"]}, "price_per_hour.T4"),
        ({"price_per_hour": ["T4=-1"]}, "price_per_hour.T4"),
        ({"gpus": ["T5"]}, "GPU 'T5' is not in the catalogue"),
        ({"runs_per_day": float("nan")}, "runs_per_day"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Rules.load(None, **given)


# GPUs side by side ---------------------------------------------------------------------------------------------------


def test_gpus_stand_side_by_side_and_the_cheapest_that_is_enough_is_marked(run):
    """The L4 is projected; the T4 was measured at 8.3x and more. At 0.5 an hour and 0.12 s it costs 0.0167 for 1,000."""
    rules = Rules.load(None, price_per_hour=["T4=0.5", "A10=50", "L4=100"], gpus=["L4", "T4", "A10", "H200"])
    rows = {row.gpu.name: row for row in costs.side_by_side({"similarity": searched()}, rules)}
    assert list(rows) == ["T4", "A10", "L4", "H200"]
    assert (rows["T4"].gain.low, rows["T4"].gain.high) == pytest.approx((1.0 / 0.12, 12.0))
    assert rows["T4"].cost.high == pytest.approx(0.5 * 0.12 * 1000 / 3600)
    assert [name for name, row in rows.items() if row.is_cheapest_search] == ["T4"]
    assert rows["H200"].cost is None  # no price: never the cheapest
    assert rows["T4"].always_on.low == pytest.approx(365)
    assert {row.verdict for row in rows.values()} == {None}  # no training: unknown, never no


def test_the_cheapest_that_fits_is_by_what_the_compiler_for_it_said():
    def fits(gpu, as_it_is, *fitting):
        return {"gpu": gpu, "as_it_is": as_it_is, "fitting": list(fitting), "plan": None}

    known = [
        fits("T4", "out of memory"),
        fits("A10", "fits", "reference"),
        fits("L4", "tight", "mixed_float16"),
        fits("H200", "fits", "reference"),
    ]
    training = changed(trained(0.02, 0.08), gpu_fits=[*known, fits("RTX 3060", None)])
    rules = Rules.load(None, price_per_hour=["T4=0.1", "L4=0.8", "A10=1.0"])
    rows = {row.gpu.name: row for row in costs.side_by_side({"training": training}, rules)}
    assert [name for name, row in rows.items() if row.is_cheapest_fit] == ["L4"]
    assert (rows["T4"].verdict, rows["H200"].verdict, rows["RTX 3060"].verdict) == ("out of memory", "fits", None)


def test_every_gpu_of_the_catalogue_is_shown_and_hostile_text_stays_text(run):
    page = report.render_report(saved(run, *results(HOSTILE)), language="tr")[0].read_text()
    assert "script" not in Page(page).tags
    for name in ("RTX 3060", "T4", "A10", "L4", "H200"):
        assert f"<td>{name}</td>" in page


# Languages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", ["10,000", "1.37 s", "11%", "2.1x to 2.4x", "11 to 12 ms", "-5.0", "17 GiB", "Nov 30, 2026"]),
        ("tr", ["10.000", "1,37 sn", "%11", "2,1 – 2,4 kat", "11 – 12 ms", "-5,0", "17 GiB", "30 Kas 2026"]),
    ],
)
def test_numbers_units_and_dates_are_written_as_the_language_has_them(code, expected):
    language = Language.load(code)
    found = [
        language.write(10_000),
        language.amount(1.37, "s"),
        language.amount(0.11, "share"),
        language.band(Band(2.1, 2.4, "x")),
        language.band(Quantity.projected(0.011, 0.012, "s", "T4", "memory")),
        language.text("{gain_points}", gain_points=-0.05),
        language.amount(17 * 2**30, "bytes"),
        language.write(datetime(2026, 11, 30, 12, tzinfo=UTC))[: len(expected[-1])],
    ]
    assert found == expected


def test_chapter_20_is_said_in_turkish_with_its_values(run):
    timings, valid = [ON_CPU], [checked("CPU tiles", 10_000)]
    finding = similarity.summarize(timings, valid, 10)
    with figures.figure() as (_, ax):
        title = plots.similarity_times(ax, timings).get_title("left")
    assert finding.startswith("The 10 nearest of each of 10,000 texts take 1.1 s on AMD EPYC (2 threads) (CPU tiles, measured)")
    pictures = [{"file": "20_times.png", "title": title, "alt": "Training and validation loss after each epoch."}]
    result = changed(searched(gpu=False), finding=finding, figures=pictures)
    (run.figures / "20_times.png").write_bytes(PIXEL)
    page = Page(report.render_report(saved(run, result), language="tr")[0].read_text()).text
    assert "10.000 metnin her birine en yakın 10 metin 1,1 sn sürüyor: AMD EPYC (2 threads) (CPU tiles, ölçüldü)" in page
    assert "GPU ölçülmedi: CUDA GPU yok; bütün yöntemler float64 ile uyuşuyor (en büyük hata 0)." in page
    assert "10.000 metin: ortanca 1,1 sn (CPU tiles)" in page
    assert "Her dönemden sonra eğitim ve doğrulama kaybı." in page
    assert finding not in page


# Markdown ------------------------------------------------------------------------------------------------------------


def test_the_markdown_report_is_english_and_has_no_html_entities(run):
    result = changed(searched(), finding='it\'s "quoted" <b> & more', embedding="svd's")
    _, markdown = report.render_report(saved(run, result), language="tr")
    text = markdown.read_text()
    assert not re.findall(r"&#?\w+;", text)
    assert 'it\'s "quoted" \\<b\\> \\& more' in text
    assert "10,000" in text
    assert isinstance(SimilarityResult.load(run), SimilarityResult)
    assert GPU in text


@pytest.mark.parametrize(
    "content", [b"\xff", b"[]", b'{"finished": 3}', b'{"finished": {"20_cupy_poc": {"duration_s": -1}}}', b""]
)
def test_a_run_file_that_cannot_be_read_is_none(run, content):
    (run.path / "run.json").write_bytes(content)
    step = report.Report.read(saved(run, *results())).overall.steps[0]
    assert step.minutes == "about 2 min"  # chapters 20 and 90, as the rules say


def test_the_report_imports_no_runner_and_no_framework():
    """Who asks for decisions in a terminal waits for neither: nbformat alone takes three seconds."""
    heavy = "[m for m in ('nbformat', 'keras', 'tensorflow', 'numba', 'altlas_lib.runner') if m in sys.modules]"
    code = f"import sys; from altlas_lib import report; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
