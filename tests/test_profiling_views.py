"""What a profile looks like: flame graph, tables, figures."""

import html
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_lib import figures, profiling
from altlas_lib.profiling.show import plots
from altlas_lib.profiling.show.flamegraph import frames_of
from altlas_lib.profiling.show.terminal import format_profile
from altlas_lib.results import (
    ArrayOperation,
    ArrayTrace,
    Candidate,
    FunctionTime,
    HiddenTransfer,
    HotspotsResult,
    LineTime,
    Projection,
    Provenance,
    Quantity,
    Route,
    WorkloadProfile,
)

HOSTILE = '<script>alert("x")</script>$a_b$ \\[c\\]'


def measured(*seconds: float) -> Quantity:
    return Quantity.measured(seconds, "s", "a CPU (2 threads)")


def projected(low: float, high: float, unit: str = "s") -> Quantity:
    return Quantity.projected(low, high, unit, "T4", "transfers")


def made_up_profile(name: str = "scores") -> WorkloadProfile:
    operation = ArrayOperation(
        name="numpy.matmul", kind="product", operands=["float32[400, 384]"], dtype="float32", n_calls=2, time_s=0.1, flops=2e8
    ).model_copy(update={"moved_bytes": 1e6})
    trace = ArrayTrace(function=name, file="a.py", line=3, n_calls=2, operations=[operation], input_bytes=6e5, output_bytes=6e5)
    functions = [
        FunctionTime(
            name=name,
            file="a.py",
            line=3,
            n_calls=2,
            own=measured(0.2, 0.3),
            cumulative=measured(0.2, 0.3),
            own_by_library={"numpy": 0.9, "own lines": 0.1},
            sampled_own_share=0.8,
            sampled_share=0.9,
            own_by_class={"arrays": 0.75, "interpreter": 0.25},
            lines=[LineTime(line=4, source=f"    return {name}", n_hits=2, share=0.97)],
        ),
        FunctionTime(name="in a thread", file="b.py", line=1, sampled_own_share=0.2, sampled_share=0.2),
    ]
    return WorkloadProfile(
        workload=name,
        target=f"module:{name}",
        total=measured(0.25, 0.26, 0.3),
        functions=functions,
        n_samples=10,
        stacks={f"main;{name};[arrays]": 6, f"main;{name}": 2, "main;in a thread;[waiting]": 2},
        traces=[trace],
    )


def made_up_candidate(advice: str = "port it", gain: tuple[float, float] = (3, 9)) -> Candidate:
    projection = Projection(
        gpu="T4",
        basis="data sheet",
        now=measured(0.2),
        on_gpu=projected(0.02, 0.06),
        on_gpu_resident=projected(0.01, 0.02),
        by_cause={"transfers": 0.03},
        coverage=0.95,
    )
    return Candidate(
        workload="scores",
        function="scores",
        share=0.8,
        tool="py-spy",
        largest_gain=5.0,
        projection=projection,
        gain=projected(*gain, unit="x"),
        workload_gain=projected(1.9, 3.4, unit="x"),
        advice=advice,
        reason="because",
    )


# The flame graph ----------------------------------------------------------------------------------------------------------


def test_a_frame_is_as_wide_as_its_samples_and_lies_above_its_caller():
    frames = {frame["name"]: frame for frame in frames_of({"main;work;[arrays]": 6, "main;work": 2, "main;other": 2})}
    assert {name: (frame["depth"], frame["n_samples"]) for name, frame in frames.items()} == {
        "main": (0, 10),
        "other": (1, 2),
        "work": (1, 8),
        "[arrays]": (2, 6),
    }
    assert frames["work"]["width"] == pytest.approx(0.8)
    assert frames["work"]["left"] == frames["[arrays]"]["left"] == pytest.approx(frames["other"]["width"])


@given(st.dictionaries(st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(";".join), st.integers(1, 50), min_size=1))
def test_callees_lie_within_their_caller_and_none_overlap(stacks):
    frames = frames_of(stacks)
    rows = {}
    for frame in frames:
        rows.setdefault(frame["depth"], []).append((frame["left"], frame["left"] + frame["width"]))
    for depth, spans in rows.items():
        spans.sort()
        assert all(right <= left + 1e-9 for (_, right), (left, _) in itertools.pairwise(spans))
        if depth:
            below = rows[depth - 1]
            assert all(any(l0 - 1e-9 <= left and right <= r0 + 1e-9 for l0, r0 in below) for left, right in spans)
    assert sum(right - left for left, right in rows[0]) == pytest.approx(1)


def test_a_hostile_function_name_is_text_in_page_and_notebook():
    shown = profiling.flame_graph(made_up_profile(HOSTILE))._repr_html_()
    page = html.unescape(re.search('srcdoc="([^"]*)"', shown)[1])
    assert page.startswith("<!doctype html>")
    assert "<script>alert" not in page
    assert html.escape("<script>alert") in page
    assert shown.count("<") == 2  # the iframe's own tags: everything of the page is within its srcdoc
    assert 'sandbox="allow-scripts"' in shown
    assert not re.search(r"(src|href)=|https?:", page)  # nothing is loaded


def test_without_samples_the_flame_graph_has_the_notes_that_say_why():
    profile = made_up_profile().model_copy(update={"stacks": {}, "n_samples": 0, "notes": ["py-spy gave no shares: refused"]})
    page = html.unescape(profiling.flame_graph(profile))
    assert ": 0 samples" in page
    assert "<p>py-spy gave no shares: refused</p>" in page
    assert "<button" not in page


# Tables and figures -----------------------------------------------------------------------------------------------------


def test_tables_show_what_was_seen_and_say_what_was_not():
    profile, candidate = made_up_profile(HOSTILE), made_up_candidate()
    function_table = profiling.function_table(profile).to_html()
    assert "<script>" not in function_table
    assert "not seen" in function_table
    assert "arrays 75%" in function_table
    (line,) = profiling.line_table(profile).rows  # 97 % of a function that is on nine of ten stacks, in runs of 250 ms or more
    assert (line["code"], line["share of a run"]) == (f"return {HOSTILE}", pytest.approx(0.97 * 0.9))
    assert line["ms of a run"] == pytest.approx(0.97 * 0.9 * 250)
    first = profile.functions[0].model_copy(update={"sampled_share": None})
    unsampled = profiling.line_table(profile.model_copy(update={"functions": [first]}))
    assert unsampled.rows[0]["ms of a run"] is unsampled.rows[0]["share of a run"] is None
    assert "not sampled" in unsampled.to_html()
    operations = profiling.operation_table(profile).to_html()
    assert "numpy.matmul" in operations
    assert ">2<" in operations  # 2e8 operations in 0.1 s
    assert "3x to 9x" in profiling.candidate_table([candidate]).to_html()
    without = candidate.model_copy(update={"projection": None, "gain": None, "workload_gain": None, "advice": "unknown"})
    assert "not projected" in profiling.candidate_table([without]).to_html()


def test_a_checked_port_names_what_cupy_has_and_the_lines_that_would_copy():
    profile = made_up_profile()
    (trace,) = profile.traces
    names = {"numpy.matmul": 0.2, "scipy.integrate.quad": 0.1, "mine.f": 0.05}
    operations = [trace.operations[0].model_copy(update={"name": name, "time_s": s}) for name, s in names.items()]
    view = trace.operations[0].model_copy(update={"name": "ndarray.reshape", "kind": "view"})
    transfers = [HiddenTransfer(line=2, what="iteration", n_times=1), HiddenTransfer(line=9, what="float(x)", n_times=3000)]
    checked = trace.model_copy(update={"operations": [*operations, view], "hidden_transfers": transfers})
    (row,) = profiling.port_table(profile.model_copy(update={"traces": [checked]})).rows
    assert row == {
        "function": "scores",
        "CuPy: has": "numpy.matmul",
        "CuPy: lacks": "scipy.integrate.quad",
        "CuPy: unknown": "mine.f",
        "would copy to the host": "line 2: iteration (1 times), line 9: float(x) (3,000 times)",
    }


def test_every_way_out_is_said_with_how_it_is_known():
    gain = Quantity.measured([2.0, 2.5, 3.0], "x", "a CPU")
    routes = [
        Route(kind="algorithm", name="quick:way", standing="measured", gain=gain, same_answer=True, why="timed"),
        Route(kind="algorithm", name="wrong:way", standing="measured", gain=gain, same_answer=False, why="timed"),
        Route(kind="drop-in library", name="cuml.accel", standing="offered", why="for KMeans"),
        Route(kind="CuPy port", name="CuPy", standing="projected", gain=projected(2, 3, "x"), why="for matmul"),
    ]
    candidate = made_up_candidate("change the call").model_copy(update={"routes": routes})
    rows = profiling.route_table([candidate]).rows
    assert [(row["by"], row["known"], row["whole workload"], row["answer"]) for row in rows] == [
        ("quick:way", "measured", "2.5x", "same"),
        ("wrong:way", "measured", "2.5x", "DIFFERS"),
        ("cuml.accel", "offered", None, "not compared"),
        ("CuPy", "projected", "2x to 3x", "not compared"),
    ]
    text = format_profile(made_up_profile(), [candidate])
    assert "way 2, algorithm: wrong:way (2.5x for the whole, measured, answer DIFFERS)" in text
    assert "way 3, drop-in library: cuml.accel (offered): for KMeans" in text
    assert "change the call, 2.5x for the whole, measured" in profiling.finding([made_up_profile()], [candidate])


def test_what_stays_is_not_said_with_a_number_that_would_be_quoted():
    """A function that owns 98 % of the time and stays: 'at most 46x' would be all that is remembered."""
    candidate = made_up_candidate("leave it", gain=(0.5, 46)).model_copy(update={"largest_gain": 46.0, "share": 0.98})
    shown = [
        format_profile(made_up_profile(), [candidate]),
        profiling.candidate_table([candidate]).styler().to_html(table_uuid="t"),  # a random one may hold the digits
        profiling.finding([made_up_profile()], [candidate]),
    ]
    assert not any("46" in text for text in shown)


def test_the_finding_names_functions_advice_and_that_nothing_ran_on_the_gpu():
    finding = profiling.finding([made_up_profile()], [made_up_candidate()])
    assert finding == (
        "scores (260 ms per run) spends 80% in scores (port it, 3x to 9x). Measured on a CPU (2 threads). "
        "Gains are projected for T4; nothing ran there."
    )
    assert "T4" not in profiling.finding([made_up_profile()], [])


def drawn_shares(ax) -> dict[str, list[float]]:
    return {bars.get_label(): [pytest.approx(bar.get_width()) for bar in bars] for bars in ax.containers}


def test_the_figure_states_its_message():
    profile = made_up_profile()
    with figures.figure() as (_, ax):
        assert plots.time_classes(ax, [profile]).get_title("left") == "Most of the time goes into arrays: 60%"
        assert drawn_shares(ax) == {"arrays": [60, 0], "interpreter": [20, 0], "not known": [0, 20]}
    without = [each.model_copy(update={"sampled_own_share": None, "own_by_class": {}}) for each in profile.functions[:1]]
    with figures.figure() as (_, ax):
        drawn = plots.time_classes(ax, [profile.model_copy(update={"functions": without})])
        assert drawn.get_title("left") == "py-spy saw no native frames"
        assert drawn_shares(ax) == {"not known": [100]}  # by cProfile
    with figures.figure() as (_, ax):
        nothing = plots.time_classes(ax, [profile.model_copy(update={"functions": []})])
        assert nothing.get_title("left") == "py-spy saw no native frames"


def test_what_is_handed_to_the_next_chapter_is_what_a_gpu_gains_from():
    advices = ["port it", "leave it", "batch first", "unknown", "vectorise first", "keep the data on the GPU"]
    candidates = [made_up_candidate(advice) for advice in advices]
    result = HotspotsResult(provenance=Provenance.now({}), finding="x", workloads=[], candidates=candidates)
    assert [each.advice for each in result.to_port] == ["port it", "batch first", "keep the data on the GPU"]
