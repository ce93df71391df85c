"""The report shows what the result files say, names what is missing, and lets nothing from data act as markup."""

import ast
import json
import re
import sys
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import mistune  # comes with nbconvert
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altlas_lib import report
from altlas_lib.devices import find_gpu
from altlas_lib.report import decide
from altlas_lib.results import (
    Advice,
    Agreement,
    Basis,
    Calibration,
    Candidate,
    Ceilings,
    DataSource,
    Engine,
    EnvironmentResult,
    Epoch,
    FigureFile,
    Finding,
    Forward,
    FunctionTime,
    HotspotsResult,
    InferenceResult,
    Kept,
    Kill,
    Latency,
    Licence,
    LoadPoint,
    MemoryPlan,
    Metric,
    Overhead,
    Projection,
    Provenance,
    Quality,
    Quantity,
    Remedy,
    RouteKind,
    RouteStanding,
    ServingResult,
    SimilarityResult,
    Timing,
    TrainingResult,
    Validation,
    Variant,
    WorkloadProfile,
)

HOSTILE = "<script>alert('x')</script> \"quoted\" | `code` ](javascript:alert(1)) \n# heading {{ 7 * 7 }} &amp; İşğü"
CPU, GPU = "AMD EPYC (2 threads)", "Tesla T4"
SOURCE = {"n_rows": 1000, "n_skipped": 3, "sha256": "0" * 64}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fcffff3f0300070005fe02fea7355981"
    "0000000049454e44ae426082"
)


def made(text="plain", devices=(CPU,)):
    return Provenance.now({"texts": text}).model_copy(update={"devices": list(devices)})


def seconds(*samples, device=CPU):
    return Quantity.measured(samples, "s", device)


def results(text="plain", *, gpu=False, break_even=None, passed=True):
    """All chapters, with `text` wherever text comes from data or from the user."""
    shared = {
        "provenance": made(text, (CPU, GPU) if gpu else (CPU,)),
        "finding": f"found {text}",
        "figures": [FigureFile(file="20_times.png", title=text, alt=text)],
    }
    timings = [Timing(method="NumPy, row blocks", n_texts=1000, time=seconds(1.0, 2.0, 3.0))]
    checked = {"n_texts": 1000, "largest_error": 0.0 if passed else 1.0, "tolerance": 1e-6, "n_other_neighbours": 0}
    validations = [Validation(method="NumPy, row blocks", device=CPU, **checked)]
    if gpu:
        on_gpu = seconds(0.4, 0.5, 0.6, device=GPU)
        timings.append(Timing(method="CuPy, row blocks", on_gpu=True, n_texts=1000, time=on_gpu))
        validations.append(Validation(method="CuPy, row blocks", device=GPU, **checked))
    projected = Quantity.projected(0.01, 0.02, "s", text or "T4", text or "transfers")
    metric = Metric(name=text, unit="share", higher_is_better=True, model=0.6, base_rate=0.65, n_samples=99)
    quality = Quality(
        **{"option": text, "series": text, "n_seeds": 3, "n_parameters": 12345, "metrics": [metric]},
        gain_kept=Kept(value=0.5, low=0.4, high=0.6),
        claimed=(0.95, 0.98),
    )
    epoch = Epoch(
        **{"epoch": 1, "metrics": {"loss": 1.0}, "duration_s": 1.0, "micro_batch_size": 8, "n_updates": 9},
        **{"memory_device": CPU, "memory_bytes": 1, "peak_memory_bytes": 2},
    )
    function = FunctionTime(name=text, file=text, line=1, n_calls=2, own=seconds(0.1), cumulative=seconds(0.2))
    return [
        EnvironmentResult(
            **shared,
            ready=True,
            findings=[Finding(check="GPU", status="warning", found=text, fix=text)],
            ceilings=Ceilings(
                cpu_matmul_float32=Quantity.measured([240.0], "GFLOP/s", CPU),
                cpu_copy_bandwidth=Quantity.measured([38.0], "GB/s", CPU),
            ),
            target_gpu=find_gpu("T4"),
            licences=[Licence(package=text, version=text, declared=text, flag="copyleft")],
        ),
        HotspotsResult(
            **shared,
            target_gpu=text,
            workloads=[
                WorkloadProfile(
                    workload=text,
                    target=text,
                    total=seconds(0.3),
                    seconds_by_n_threads={1: 0.3},
                    functions=[function],
                    tools=[Overhead(tool=text, version=text, gave=text, factor=1.5)],
                    notes=[text],
                )
            ],
            candidates=[
                Candidate(
                    workload=text,
                    function=text,
                    share=0.5,
                    largest_gain=2.0,
                    projection=Projection(
                        gpu=text,
                        basis="data sheet",
                        now=seconds(0.15),
                        on_gpu=projected,
                        on_gpu_resident=projected,
                        by_cause={text: 0.1},
                        coverage=0.9,
                    ),
                    gain=projected,
                    workload_gain=projected,
                    advice="port it",
                    reason=text,
                )
            ],
        ),
        SimilarityResult(
            **shared,
            source=DataSource(name=text, **SOURCE),
            embedding=text,
            n_dimensions=8,
            k=10,
            validations=validations,
            timings=timings,
            break_even_n_texts=break_even,
            most_similar=[(text, text, 0.5)],
        ),
        TrainingResult(
            **shared,
            source=DataSource(name=text, **SOURCE),
            preset="quick",
            n_parameters=12345,
            micro_batch_size=8,
            gradient_accumulation_steps=8,
            history=[epoch],
            metrics=[metric],
            step_time=seconds(0.01, 0.02),
            gpu=text,
            remedies=[Remedy(name=text, plan=plan(text), claimed=text), Remedy(name="b", plan=None, problem=text)],
            qualities=[quality, quality.model_copy(update={"gain_kept": None})],
            notes=[text],
        ),
        InferenceResult(
            **shared,
            source=DataSource(name=text, **SOURCE),
            model=text,
            n_parameters=12345,
            trained=True,
            target_gpu=text,
            variants=[
                Variant(name="float32", file="model.onnx", size_bytes=472_000),
                Variant(
                    **{"name": text, "file": "model.int8.onnx", "size_bytes": 291_000},
                    agreement=[Agreement(output=text, n_samples=99, largest=0.1, rms=0.01, class_agreement=0.99)],
                    calibration=Calibration(source=text, n_samples=64, method="MinMax"),
                    score_kept=Kept(value=1, low=0.995, high=1.005),
                ),
                Variant(name="b", problem=text),
            ],
            latencies=[call("Keras predict", 0.1), call("float32", 0.01), call(text, 0.004), call("float32", 0.02, batch=8)],
            engines=[engine(text, "built"), engine(text, "refused")],
            forwards=[
                Forward(gpu="T4", dtype="float16", batch=1, memory=seconds(1), n_launches=9, time=projected),
                Forward(gpu="T4", dtype="float16", batch=8, memory=seconds(1), n_launches=9, note=text),
            ],
            notes=[text],
        ),
        ServingResult(
            **shared,
            source=DataSource(name=text, **SOURCE),
            n_rows=1000,
            n_dimensions=8,
            k=10,
            rows_per_request=8,
            latency_limit_s=0.1,
            wanted_per_s=50,
            bare=seconds(0.001),
            loads=[
                LoadPoint(
                    batching=batching,
                    offered_per_s=40,
                    answered_per_s=Quantity.measured([39, 40], "requests/s", CPU),
                    **{name: seconds(0.02, 0.03) for name in ("p50", "p95", "p99")},
                )
                for batching in (True, False)
            ],
            kill=Kill(state="done", tries=2, same_answer=True, restart=seconds(2.0)),
            gpu_rows_per_s=Quantity.projected(1e5, 1e6, "rows/s", text or "T4", text or "transfers"),
        ),
    ]


def call(runner, s, batch=1):
    return Latency(runner=runner, batch=batch, threads=None, time=seconds(0.95 * s, s, 1.05 * s), p95_s=s, p99_s=s)


def engine(text, status):
    size = Quantity.compiled(2**20, "bytes", "T4") if status == "built" else None
    return Engine(gpu=text, compute_capability="7.5", variant=text, status=status, size=size, message=text, advice=text)


def plan(text):
    return MemoryPlan(
        gpu=text,
        configuration={"model": text, "batch_size": 64, "gradient_accumulation_steps": 1},
        peak=Quantity.compiled(17 * 2**30, "bytes", text or "T4"),
        bytes_by_part={"weights": 2**30, "temporaries": 2**34},
        overhead_bytes=2**29,
        usable_bytes=15 * 2**30,
        verdict="out of memory",
        n_parameters=12345,
    )


def render(run, saved):
    for result in saved:
        result.save(run)
    (run.figures / "20_times.png").write_bytes(PIXEL)
    page, markdown = report.render_report(run)
    return page.read_text(), markdown.read_text()


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_every_chapter_is_shown_with_its_numbers_and_their_basis(run):
    page, markdown = render(run, results())
    text = " ".join(Page(page).text.split())
    for chapter in decide.load_tables().chapters:
        assert f'<h2 id="{chapter}">' in page
    for expected in (
        "240 GFLOP/s measured",
        "2 s measured",
        "12,345 parameters",
        "effective batch 64",
        "15 ms measured",
        "0.6",
    ):
        assert expected in text
    assert "Missing:" not in text
    assert f"measured, {CPU}; median of 3 runs, 1 to 3 s" in page  # device and spread of a number, in its title
    assert "2 s (measured, AMD EPYC (2 threads))" in markdown


def test_a_page_without_gpu_says_so_first_and_claims_no_gpu_number(run):
    page, markdown = render(run, results())
    assert page.index("No GPU was in this machine") < page.index("<table>")
    assert "GPU's are **not measured**" in markdown
    assert "**Not enough evidence.**" in markdown


def decision(run, saved, question, **options):
    for result in saved:
        result.save(run)
    (found,) = [each for each in report.Report.read(run, **options).decisions if question in each.question]
    return found


@pytest.mark.parametrize(
    ("fields", "verdict", "why"),
    [
        ({}, "not enough evidence", "No GPU was measured"),
        ({"gpu": True}, "go", "1.7x to 7.5x as fast as on the CPU"),
        ({"gpu": True, "break_even": 1000}, "go", "1.7x to 7.5x as fast"),
        ({"gpu": True, "break_even": 4100}, "go with conditions", "1.7x to 7.5x as fast"),
        ({"gpu": True, "break_even": 4100, "passed": False}, "no-go", "Not the answer of the reference"),
    ],
)
def test_whether_the_port_goes_into_production_follows_from_the_results(run, fields, verdict, why):
    page, markdown = render(run, results(**fields))
    found = decision(run, results(**fields), "into production")
    assert found.verdict == verdict
    assert why in found.why
    assert f"**{verdict.capitalize()}.**" in markdown
    assert why in page
    assert ("No GPU was in this machine" in page) == ("gpu" not in fields)
    assert found.evidence[0].source.startswith("results/similarity.json#")


def changed(result, **fields):
    return type(result).model_validate(result.model_dump() | fields)


def of(saved, chapter):
    return next(result for result in saved if result.chapter == chapter)


def test_a_changed_number_changes_the_decision(run):
    """The same file with another number in it: the answer follows, and so does the page."""
    saved = results()
    assert decision(run, saved, "worth training").verdict == "not enough evidence"
    training = changed(of(saved, "training"), preset="reference", n_seeds=3)
    scored = training.metrics[0].model_copy(update={"model": 0.7, "gain_low": 0.02, "gain_high": 0.08})
    assert decision(run, [changed(training, metrics=[scored.model_dump()])], "worth training").verdict == "go"
    page, _ = (path.read_text() for path in report.render_report(run))
    assert "It predicts: on 99 unseen values it gains +5.0 points" in page
    assert "(95 % interval +2.0 to +8.0)" in page
    worse = scored.model_copy(update={"gain_low": -0.08, "gain_high": -0.02})
    assert decision(run, [changed(training, metrics=[worse.model_dump()])], "worth training").verdict == "no-go"


def planned(name, verdict, peak_gib=17.0, batch=64, largest=None):
    update = {"verdict": verdict, "peak": Quantity.compiled(peak_gib * 2**30, "bytes", "T4")}
    made = plan("T4").model_copy(update=update | {"configuration": {"model": name, "batch_size": batch}})
    return Remedy(name=name, plan=made, largest_batch=largest)


@pytest.mark.parametrize(
    ("remedies", "verdict", "why"),
    [
        ([], "not enough evidence", "Nothing was planned"),
        ([planned("reference", "fits", 9, largest=96)], "go", "fits a T4"),
        (
            [planned("reference", "out of memory", largest=40), planned("mixed_float16", "fits", 12, largest=64)],
            "go with conditions",
            "As planned it needs 17 GiB and does not fit a T4; it does with: mixed_float16.",
        ),
        ([planned("reference", "out of memory"), planned("b", "out of memory")], "no-go", "No remedy makes it fit a T4"),
        ([planned("reference", "undecided"), planned("mixed_float16", "out of memory")], "not enough evidence", "not compiled"),
        (
            [planned("reference", "undecided"), planned("b", "fits")],
            "go with conditions",
            "Whether it fits a T4 as planned is not sure; it does with: b.",
        ),
        (
            [Remedy(name="reference", plan=None, problem="x"), Remedy(name="b", plan=None, problem="y")],
            "not enough evidence",
            "Nothing was planned",
        ),
        (
            [planned("reference", "out of memory"), Remedy(name="b", plan=None, problem="late")],
            "not enough evidence",
            "not compiled",
        ),
    ],
)
def test_whether_the_training_fits_follows_from_its_plans(run, remedies, verdict, why):
    training = changed(of(results(), "training"), remedies=[remedy.model_dump() for remedy in remedies])
    found = decision(run, [training], "fit the GPU")
    assert found.verdict == verdict
    assert why in found.why
    if verdict == "go with conditions" and remedies[0].largest_batch:
        assert found.changes[0] == "reference: batch 40 fits, 64 does not."
        assert [number.text for number in found.evidence] == ["17 GiB", "12 GiB"]


@pytest.mark.parametrize(
    ("low", "high", "advice", "verdict"),
    [
        (2.0, 3.0, "port it", "go"),
        (2.0, 3.0, "keep the data on the GPU", "go with conditions"),
        (1.1, 3.0, "port it", "go with conditions"),
        (1.0, 1.2, "leave it", "no-go"),
        (0.9, 8.0, "unknown", "not enough evidence"),
        (0.9, 1.2, "unknown", "not enough evidence"),
    ],
)
def test_whether_there_is_something_to_port_follows_from_the_projection(run, low, high, advice, verdict):
    hotspots = of(results(), "hotspots")
    gain = Quantity.projected(low, high, "x", "T4", "transfers")
    candidate = hotspots.candidates[0].model_copy(update={"workload_gain": gain, "gain": gain, "advice": advice})
    found = decision(run, [changed(hotspots, candidates=[candidate.model_dump()])], "worth porting")
    assert found.verdict == verdict
    assert found.evidence[0].source == "results/hotspots.json#/candidates/0/workload_gain"


def test_a_workload_of_python_alone_is_a_no_and_one_that_was_not_seen_is_none(run):
    """Low coverage is unknown, never no: also where something else was seen, and is nothing to port."""
    hotspots = of(results(), "hotspots")
    python = hotspots.candidates[0].model_copy(update={"workload_gain": None, "projection": None, "advice": "leave it"})
    unseen = python.model_copy(update={"advice": "unknown"})
    slow = python.model_copy(update={"workload_gain": Quantity.projected(0.9, 1.1, "x", "T4", "transfers")})
    for candidates, verdict in (
        ([python], "no-go"),
        ([python, slow], "no-go"),
        ([python, unseen], "not enough evidence"),
        ([slow, unseen], "not enough evidence"),
        ([], "not enough evidence"),
    ):
        found = changed(hotspots, candidates=[each.model_dump() for each in candidates])
        assert decision(run, [found], "worth porting").verdict == verdict


def test_where_the_cpu_stopped_earlier_the_gpu_is_compared_at_its_largest_size(run):
    similarity = of(results(gpu=True), "similarity")
    larger = similarity.timings[1].model_copy(update={"n_texts": 100_000})
    timings = [timing.model_dump() for timing in (*similarity.timings, larger)]
    found = decision(run, [changed(similarity, timings=timings)], "into production")
    assert found.verdict == "go"
    assert "1,000 texts" in found.evidence[0].label


def test_every_evidence_stands_where_it_says(run):
    """Following each source into the result file finds the number that the first screen shows."""
    saved = results(gpu=True, break_even=4100)
    training = of(saved, "training")
    saved[-1] = changed(
        training, remedies=[planned("reference", "out of memory").model_dump(), planned("b", "fits").model_dump()]
    )
    for result in saved:
        result.save(run)
    found = [number for each in report.Report.read(run).decisions for number in each.evidence]
    assert len(found) >= 8
    for number in found:
        file, _, pointer = number.source.partition("#")
        value = json.loads((run.path / file).read_text())
        for step in pointer.strip("/").split("/"):
            value = value[int(step) if isinstance(value, list) else step]
        if isinstance(value, dict):
            assert str(Quantity.model_validate(value)) == number.text
            assert (value["basis"], value["device"]) == (number.basis, number.device)
        elif number.text.endswith("%"):
            assert float(number.text.rstrip("%")) == pytest.approx(100 * value, abs=0.51)
        else:
            assert number.basis == "data sheet"


def test_the_rules_are_data_and_can_be_changed(run, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("integrate: {least_gain: 8}\nfit:\n  accepted_verdicts: [fits, tight]\n")
    saved = results(gpu=True)
    assert decision(run, saved, "into production").verdict == "go"
    assert decision(run, saved, "into production", rules=rules).verdict == "no-go"
    tight = changed(of(saved, "training"), remedies=[planned("reference", "tight").model_dump()])
    assert decision(run, [tight], "fit the GPU").verdict == "go with conditions"
    assert decision(run, [tight], "fit the GPU", rules=rules).verdict == "go"
    page = report.render_report(run, rules=rules)[0].read_text()
    assert "integrate.least_gain = 8.0" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("integrate: {least_gain: many}", "integrate.least_gain: Input should be a valid number"),
        ("integrat: {least_gain: 2}", "integrat: Extra inputs are not permitted"),
        ("port: {least_workload_gain: .inf}", "port.least_workload_gain"),
        ("fit: {accepted_verdicts: []}", "fit.accepted_verdicts"),
        ("- 1", "cannot be read"),
        ("integrate: 3", "cannot be read"),
        ("a: [", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused_by_name(run, tmp_path, content, message):
    rules = tmp_path / "rules.yaml"
    if content is not None:
        rules.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        report.Report.read(run, rules=rules)
    assert "rules.yaml" in str(refused.value)


def test_results_of_other_parameters_code_or_order_are_called_stale(run):
    environment, _, similarity, *_ = saved = results()
    for result in saved:
        result.save(run)
    assert list(report.stale(report.Report.read(run))) == []
    other = similarity.provenance.model_copy(update={"git_commit": "0" * 40})
    changed(similarity, provenance=other.model_dump()).save(run)
    later = environment.provenance.model_copy(update={"created_at": similarity.provenance.created_at + timedelta(hours=1)})
    changed(environment, provenance=later.model_dump()).save(run)
    finished = {"parameters": {"texts": "other"}, "notebook_sha256": "", "duration_s": 1, "finished_at": "2026-01-01T00:00:00Z"}
    (run.path / "run.json").write_text(json.dumps({"finished": {"30_training": finished}}))
    page = Page(report.render_report(run)[0].read_text()).text
    for sentence in (
        "Made by other code: chapters 20 (commit 0000000000, now",
        "Chapter 10 is older than chapter 00, which it reads.",
        "Chapter 20 is older than chapter 00, which it reads.",
        "Chapter 30 was made with texts = plain; the run asked for other.",
    ):
        assert sentence in page
    assert page.index("Stale results") < page.rindex("Is this machine ready?")  # its card; the list of verdicts is above


# Languages ---------------------------------------------------------------------------------------------------------------


SENTENCE = re.compile(r'_\(\s*"((?:[^"\\]|\\.)*)"')


def sentences():
    """Every sentence that the report asks a translation of: in templates, and in Python."""
    folder = Path(report.__file__).parent
    for template in folder.glob("templates/*.html.j2"):
        yield from (json.loads(f'"{found}"') for found in SENTENCE.findall(template.read_text()))
    for module in folder.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="_" | "Sentence") | ast.Attribute(attr="text"),
                    args=[ast.Constant(value=str(sentence)), *_],
                ):
                    yield sentence
    tables = decide.load_tables()
    for asked in tables.questions:
        yield from filter(None, (asked.question, asked.about, asked.effort, asked.risk))
        yield from (pointer.label for pointer in asked.evidence)
        yield from (answer.why for answer in asked.answers)
        changes = [change for row in (asked, *asked.answers) for change in row.changes]
        said = [next(iter(change.values())) if isinstance(change, dict) else change for change in changes]
        yield from (sentence for sentence in said if not sentence.startswith("*"))
    yield from tables.chapters.values()
    yield from (sentence for row in (*tables.overall, *tables.without_result) for sentence in (row.why, *row.changes))
    for literal in (decide.Verdict, decide.OverallVerdict, Advice, Basis, RouteKind, RouteStanding):
        yield from get_args(literal)


def test_every_sentence_has_a_turkish_one_with_the_same_values():
    turkish = report.language.Language.load("tr").sentences
    asked = set(sentences())
    assert len(asked) > 150
    assert asked <= turkish.keys()
    for english_one, other in turkish.items():  # of the chapters', too
        assert set(re.findall(r"{(\w+)}", english_one)) == set(re.findall(r"{(\w+)}", other)), english_one


def test_the_turkish_page_says_the_same_in_turkish(run):
    for result in results(gpu=True, break_even=4100):
        result.save(run)
    english_page, turkish_page = (report.render_report(run, language=code)[0].read_text() for code in ("en", "tr"))
    assert '<html lang="tr">' in turkish_page
    tags = [[tag for tag in Page(each).tags if tag != "span"] for each in (english_page, turkish_page)]  # span: still English
    assert tags[0] == tags[1]
    text = Page(turkish_page).text
    for expected in ("Bu makine hazır mı?", "koşullu evet", "4.100 metinden itibaren", "ölçüldü", "Kararı ne değiştirir:"):
        assert expected in text
    assert "What would change it" not in text
    verdicts = [[each.verdict for each in report.Report.read(run, language=code).decisions] for code in ("en", "tr")]
    assert verdicts[0] == verdicts[1]
    with pytest.raises(ValueError, match="language 'de': expected one of 'en', 'tr'"):
        report.render_report(run, language="de")


# Missing and damaged -----------------------------------------------------------------------------------------------------


def test_missing_and_damaged_results_are_named_with_the_command_that_makes_them(run):
    _, hotspots, *_ = results()
    hotspots.save(run)
    (run.results / "similarity.json").write_text('{"schema_version": 0}')
    earlier = run.report / "poc_cosine_similarity_cupy_report.md"
    earlier.write_text("of an earlier result")
    (page,) = (path.read_text() for path in report.render_report(run))
    assert page.count("Missing:") == 1
    assert (
        page.count("<code>altlas run --run test --only 00 --only 20 --only 30 --only 40 --only 50 --only 90</code>") == 2
    )  # and as next step
    assert "schema_version: Input should be 4, got 0" in Page(page).text
    assert re.findall(r'<h2 id="(\w+)">', page) == ["claims", "hotspots", "provenance"]  # no empty sections
    assert {link for name, link in Page(page).attributes if name == "href"} == {"#hotspots"}
    assert not earlier.exists()  # no Markdown report without its chapter


def test_an_empty_run_still_makes_a_report(run):
    (page,) = (path.read_text() for path in report.render_report(run))
    assert page.count("Missing:") == 1
    assert "altlas run --run test --only 00 --only 10 --only 20 --only 30 --only 40 --only 50 --only 90" in page
    assert all("altlas run --run test" in problem for problem in report.Report.read(run).problems.values())


def test_a_figure_that_is_gone_is_named(run):
    for result in results():
        result.save(run)
    page, _ = report.render_report(run)
    assert "20_times.png is gone" in page.read_text()


def test_every_table_scrolls_where_it_is_wider_than_the_window(run):
    page, _ = render(run, results(gpu=True))
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 10


def test_the_page_needs_no_network(run):
    page, _ = render(run, results())
    links = [value for name, value in Page(page).attributes if name in ("src", "href")]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "@import" not in page
    assert "url(" not in page


def test_hostile_text_stays_text(run):
    page, markdown = render(run, results(HOSTILE))
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "alert('x')" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    rendered = Page(mistune.create_markdown(plugins=["table"])(markdown))
    assert set(rendered.tags) <= {"h1", "h2", "p", "strong", "em", "code", "pre", "blockquote", "ul", "li", "img"} | {
        *("table", "thead", "tbody", "tr", "th", "td")
    }
    assert not [value for name, value in rendered.attributes if "javascript" in value and name in ("src", "href")]
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 9}  # no cell border of its own
    assert "# heading" not in [line.strip() for line in markdown.splitlines()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_leaves_the_page_with_the_tags_that_it_has_with_plain_text(run, text):
    plain, _ = render(run, results("plain"))
    page, _ = render(run, results(text))
    assert Page(page).tags == Page(plain).tags


def test_the_page_is_printed_where_weasyprint_is_installed(run):
    pytest.importorskip("weasyprint")
    with pytest.raises(FileNotFoundError):
        report.print_report(run)
    render(run, results(HOSTILE))
    (run.figures / "20_times.png").unlink()  # a picture of one pixel is none that is printed
    report.render_report(run)
    printed = report.print_report(run)
    assert printed.name == "report.pdf"
    assert printed.read_bytes().startswith(b"%PDF-")


def test_without_weasyprint_an_earlier_pdf_does_not_stay(run, monkeypatch):
    render(run, results())
    (run.report / "report.pdf").write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    assert report.print_report(run) is None
    assert not (run.report / "report.pdf").exists()


def test_rendering_twice_replaces_the_files_and_leaves_no_other(run):
    render(run, results())
    render(run, results("changed"))
    assert sorted(path.name for path in run.report.iterdir()) == ["index.html", "poc_cosine_similarity_cupy_report.md"]
    assert "found changed" in (run.report / "index.html").read_text()
