"""In one's own notebook: what answers look like, as frames and groups, and the magics."""

import numpy as np
import pandas as pd
import pytest
from IPython.core.error import UsageError

from altlas_lib import report, similarity, training
from altlas_lib.results import Candidate, FunctionTime, Quantity, Remedy, Route, WorkloadProfile


@pytest.fixture
def vectors():
    """Rows 2, 5 and 9 are alike, and 11 and 20."""
    rows = np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32)
    rows[[5, 9]], rows[20] = rows[2], rows[11]
    return rows


def test_an_answer_is_a_sentence_and_a_short_table(vectors):
    found = similarity.top_k(vectors, 3)
    lines = repr(found).splitlines()
    assert lines[0].startswith("3 nearest of 30 rows, 0 skipped")
    assert len(lines) == 8
    assert lines[5].split()[:3] == ["2", "5,", "9,"]
    assert "<table" in found._repr_html_()
    assert repr(similarity.pairs_above(vectors, 0.99)).splitlines()[3].split() == ["2", "5", "1.000"]
    assert repr(similarity.pairs_above(vectors[:2], 0.99)).startswith("0 pairs")


def test_neighbours_as_a_frame_have_the_names_of_their_rows(vectors):
    found = similarity.top_k(vectors, 3)
    frame = found.to_frame()
    assert list(frame.columns) == ["row", "neighbor", "rank", "score"]
    assert frame.neighbor.to_numpy().reshape(30, 3).tolist() == found.indices.tolist()
    assert frame["rank"].tolist() == [1, 2, 3] * 30
    names = [f"text {i}" for i in range(30)]
    for named in (found.to_frame(labels=names), similarity.top_k(pd.DataFrame(vectors, index=names), 3).to_frame()):
        assert named.row[6] == "text 2"
        assert named.neighbor[6] == "text 5"


def test_a_skipped_row_has_no_line_in_the_frame(vectors):
    vectors[4, 0] = np.nan
    frame = similarity.top_k(vectors, 3, on_invalid="skip").to_frame()
    assert len(frame) == 29 * 3
    assert 4 not in set(frame.row) | set(frame.neighbor)


def test_pairs_between_two_frames_have_the_names_of_both(vectors):
    first, second = pd.DataFrame(vectors[:3], index=list("abc")), pd.DataFrame(vectors, index=range(100, 130))
    frame = similarity.pairs_above(first, 0.99, Y=second).to_frame()
    assert set(zip(frame["first"], frame.second, strict=True)) == {("a", 100), ("b", 101), ("c", 102), ("c", 105), ("c", 109)}
    unnamed = similarity.pairs_above(first, 0.99, Y=vectors).to_frame()
    assert set(unnamed.second) == {0, 1, 2, 5, 9}


def test_duplicates_hang_together_in_groups_whose_first_row_is_kept(vectors):
    pairs = similarity.pairs_above(vectors, 0.99)
    assert [group.tolist() for group in pairs.groups()] == [[2, 5, 9], [11, 20]]
    assert pairs.redundant_rows().tolist() == [5, 9, 20]
    assert len(similarity.pairs_above(np.delete(vectors, pairs.redundant_rows(), axis=0), 0.99)) == 0
    none = similarity.pairs_above(vectors[:2], 0.99)
    assert none.groups() == []
    assert none.redundant_rows().tolist() == []
    with pytest.raises(ValueError, match="without Y"):
        similarity.pairs_above(vectors, 0.99, Y=vectors).groups()


def test_a_chain_of_pairs_is_one_group():
    angles = np.array([0.0, 0.2, 0.4, 2.0])
    pairs = similarity.pairs_above(np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.95)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 1), (1, 2)]
    assert [group.tolist() for group in pairs.groups()] == [[0, 1, 2]]


# Magics ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(shell):
    shell.run_line_magic("load_ext", "altlas_lib")
    return shell


def test_a_cell_is_profiled_from_the_values_that_its_names_have(shell):
    shell.user_ns["total"] = 1
    cell = "# a comment first\nfor i in range(300_000):\n    total = total + i * i\nassert total == 8_999_955_000_050_001\n"
    report = shell.run_cell_magic("altlas", "--gpu L4 --time-limit 30", cell)
    assert shell.user_ns["total"] == 1
    assert [function.name for function in report.profile.functions] == ["cell"]
    assert report.profile.functions[0].lines[0].source.strip() in cell
    text, page = repr(report), report._repr_html_()
    assert text.splitlines()[0] == "__main__:cell"
    assert report.profile.workload == "cell"
    assert "  cell: " in text
    assert "<table" in page
    assert page.index("<table") < page.index("<details><summary>flame graph") < page.index("<iframe")


def test_a_cell_that_fails_says_so(shell):
    from altlas_lib.profiling import ProfilingError

    with pytest.raises(ProfilingError, match="ZeroDivisionError"):
        shell.run_cell_magic("altlas", "", "1 / 0")


def test_top_k_and_plan_take_variables(shell, vectors):
    shell.user_ns["vectors"] = vectors
    found = shell.run_line_magic("altlas", "top_k vectors -k 2")
    np.testing.assert_array_equal(found.indices, similarity.top_k(vectors, 2).indices)
    assert shell.run_line_magic("altlas", "plan reference --batch-size 8 --gpu T4").gpu == "T4"


@pytest.mark.parametrize("line", ["", "sing", "top_k", "plan"])
def test_what_the_magic_expects_is_said(shell, line):
    with pytest.raises(UsageError, match="plan MODEL"):
        shell.run_line_magic("altlas", line)


# Results -----------------------------------------------------------------------------------------------------------------


def shown(shell, result) -> tuple[str, str]:
    data, _ = shell.display_formatter.format(result)
    return data["text/plain"], data["text/html"]


def test_a_memory_plan_shows_its_verdict_its_basis_and_its_parts(shell):
    plan = training.plan_memory("reference", "T4", batch_size=64)
    text, page = shown(shell, plan)
    assert text.splitlines()[0] == "out of memory: 17.7 GiB, compiled for T4, of which a program can use 14.6 GiB"
    assert "temporaries" in text
    assert "<table" in page
    text, _ = shown(shell, Remedy(name="as it is", plan=plan))
    assert text.startswith("as it is: out of memory: 17.7 GiB, compiled for T4")
    assert shown(shell, Remedy(name="halved", plan=None, problem="no compiler"))[0].startswith("halved: no compiler")


def test_a_profile_and_a_candidate_show_their_answer_first(shell):
    function = FunctionTime(name="slow", file="job.py", line=3, n_calls=1, sampled_own_share=0.9)
    total = Quantity.measured([1.0, 2.0, 3.0], "s", "this CPU")
    text, _ = shown(shell, WorkloadProfile(workload="job", target="job:work", total=total, n_runs=7, functions=[function]))
    assert text.splitlines()[0] == "job: 2 s a run, measured on this CPU; 7 runs in all"
    assert [line for line in text.splitlines() if line.startswith("slow ")]
    route = Route(kind="algorithm", name="a faster call", standing="offered", why="it is cheaper")
    candidate = Candidate(workload="job", function="slow", share=0.9, largest_gain=10.0, reason="Because.", routes=[route])
    text, page = shown(shell, candidate)
    assert text.splitlines()[0] == "slow owns 90% of job: unknown. Because."
    assert "a faster call" in text
    assert "a faster call" in page


def test_a_decision_shows_its_verdict(shell, run):
    decision = report.Report.read(run).decisions[0]
    assert shown(shell, decision)[0].startswith(f"{decision.question} {decision.verdict}: {decision.why}")
