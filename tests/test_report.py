"""The report shows what the result files say, names what is missing, and lets nothing from data act as markup."""

import re
from html.parser import HTMLParser

import mistune  # comes with nbconvert
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altlas_lib import report
from altlas_lib.devices import find_gpu
from altlas_lib.results import (
    Candidate,
    Ceilings,
    DataSource,
    EnvironmentResult,
    Epoch,
    FigureFile,
    Finding,
    FunctionTime,
    HotspotsResult,
    Kept,
    Licence,
    MemoryPlan,
    Metric,
    Overhead,
    Projection,
    Provenance,
    Quality,
    Quantity,
    Remedy,
    SimilarityResult,
    SimilarPair,
    Timing,
    TrainingResult,
    Validation,
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
    if gpu:
        timings.append(Timing(method="CuPy, row blocks", on_gpu=True, n_texts=1000, time=seconds(0.5, device=GPU)))
    projected = Quantity.projected(0.01, 0.02, "s", text or "T4", text or "transfers")
    metric = Metric(name=text, unit="share", higher_is_better=True, model=0.6, base_rate=0.65, n_samples=99)
    quality = Quality(
        **{"option": text, "series": text, "n_seeds": 3, "n_parameters": 12345, "metrics": [metric], "verdict": text},
        **{"score_kept": Kept(value=0.99, low=0.98, high=1), "gain_kept": Kept(value=0.5, low=0.4, high=0.6)},
        claimed=(0.95, 0.98),
    )
    epoch = Epoch(
        **{"stage": 1, "epoch": 1, "metrics": {"loss": 1.0}, "duration_s": 1.0, "micro_batch_size": 8, "n_updates": 9},
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
            licences=[Licence(package=text, version=text, declared=text, flag="copyleft")],
        ),
        SimilarityResult(
            **shared,
            source=DataSource(name=text, **SOURCE),
            embedding=text,
            n_dimensions=8,
            k=10,
            validations=[
                Validation(
                    method="NumPy",
                    device=CPU,
                    n_texts=10,
                    largest_error=0.0 if passed else 1.0,
                    tolerance=1e-6,
                    n_other_neighbours=0,
                )
            ],
            timings=timings,
            break_even_n_texts=break_even,
            most_similar=[SimilarPair(first=text, second=text, score=0.5)],
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
    ]


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
    for chapter in report.QUESTIONS:
        assert f'<h2 id="{chapter}">' in page
    for expected in (
        "240 GFLOP/s measured",
        "2 s measured",
        "12,345 parameters",
        "effective batch 64",
        "15 ms measured",
        "0.6000",
    ):
        assert expected in text
    assert "Missing:" not in text
    assert f"measured, {CPU}; 3 runs, 1 s to 3 s" in page  # device and spread of a number, in its title
    assert "2 s (measured, AMD EPYC (2 threads))" in markdown


def test_a_page_without_gpu_says_so_first_and_claims_no_gpu_number(run):
    page, markdown = render(run, results())
    assert page.index("No GPU was in this machine") < page.index("<table>")
    assert "GPU's are **not measured**" in markdown
    assert "Not enough evidence" in markdown


@pytest.mark.parametrize(
    ("fields", "recommendation"),
    [
        ({}, "Not enough evidence for a full integration: no GPU was measured."),
        ({"gpu": True}, "No integration for these sizes"),
        ({"gpu": True, "break_even": 4100}, "Integrate the GPU path where 4,100 texts or more"),
        (
            {"gpu": True, "break_even": 4100, "passed": False},
            "No integration: an implementation does not give the answer of the reference.",
        ),
    ],
)
def test_the_recommendation_follows_from_the_results(run, fields, recommendation):
    page, markdown = render(run, results(**fields))
    assert recommendation in markdown
    assert ("No GPU was in this machine" in page) == ("gpu" not in fields)


def test_missing_and_damaged_results_are_named_with_the_command_that_makes_them(run):
    _, hotspots, *_ = results()
    hotspots.save(run)
    (run.results / "similarity.json").write_text('{"schema_version": 0}')
    page, markdown = (path.read_text() for path in report.render_report(run))
    for command in ("--only 00", "--only 20", "--only 30"):
        assert f"altlas run --run test {command}" in page
    assert "altlas run --run test --only 10" not in page
    assert "schema version 0, this library reads 1" in Page(page).text
    assert "Not measured: similarity.json has schema version 0" in markdown.replace("\\_", "_")


def test_an_empty_run_still_makes_a_report(run):
    page, _ = (path.read_text() for path in report.render_report(run))
    assert page.count("Missing:") == 4
    assert all("altlas run --run test" in row["what was found"] for row in report.overview(run))


def test_a_figure_that_is_gone_is_named(run):
    for result in results():
        result.save(run)
    page, _ = report.render_report(run)
    assert "20_times.png is gone" in page.read_text()


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


def test_rendering_twice_replaces_the_files_and_leaves_no_other(run):
    render(run, results())
    render(run, results("changed"))
    assert sorted(path.name for path in run.report.iterdir()) == ["index.html", "poc_cosine_similarity_cupy_report.md"]
    assert "found changed" in (run.report / "index.html").read_text()
