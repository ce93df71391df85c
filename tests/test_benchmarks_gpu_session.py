"""The session on a GPU: what fails in it loses nothing of the rest, and it can be rehearsed without one."""

import json
import shutil

import pytest

from benchmarks import gpu_figure, gpu_session
from benchmarks.gpu_session import Step


def write(text, then="pass"):
    return f"{{python}} -c open('{{out}}','w').write('{text}');{then}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(steps, **named):
        monkeypatch.setattr(gpu_session, "STEPS", steps)
        monkeypatch.setattr(gpu_session, "_name_of_gpu", lambda: "RTX 4090 (a)")
        gpu_session.main(["--folder", str(tmp_path), *named.get("arguments", [])])
        (file,) = tmp_path.glob("gpu-*.json")
        assert file.with_suffix(".png").stat().st_size > 1000
        return file.name, json.loads(file.read_text())

    return run


def test_a_step_that_fails_hangs_or_writes_nonsense_loses_nothing_of_the_others(run, capsys):
    read = gpu_session._read_json
    steps = {
        "first": Step(write("[1]"), 20, read),
        "hangs": Step(write("[2", "import/**/time"), 20, read),
        "slow": Step("{python} -c __import__('time').sleep(60)", 0.5, read),
        "fails": Step("{python} -c raise(SystemExit('my/last/words'))", 20, read),
        "absent": Step("no", 20, read, program="no-such-program"),
        "last": Step(write("[3]"), 20, read),
    }
    name, record = run(steps)
    assert name == "gpu-rtx-4090-a.json"
    found = record["steps"]
    assert (found["first"]["result"], found["last"]["result"]) == ([1], [3])
    assert "left no result" in found["hangs"]["failed"]
    assert "ran out of its time" in found["slow"]["failed"]
    assert found["slow"]["took_s"] < 20
    assert "ended with status 1" in found["fails"]["failed"]
    assert "my/last/words" in found["fails"]["failed"]
    assert found["absent"]["failed"] == "no-such-program is not installed"
    assert "slow: FAILED: ran out of its time" in capsys.readouterr().out


def test_a_second_session_replaces_what_it_finishes(run):
    read = gpu_session._read_json
    run({"a": Step(write("[1]"), 20, read), "b": Step(write("[1]"), 20, read)})
    _, record = run({"a": Step(write("[2]"), 20, read), "b": Step("{python} -c 1/0", 20, read)})
    assert {name: step["result"] for name, step in record["steps"].items()} == {"a": [2], "b": [1]}


def test_a_session_without_time_left_starts_nothing(run, monkeypatch):
    monkeypatch.setattr(gpu_session, "_SESSION_S", -1)
    _, record = run({"a": Step(write("[1]"), 20, gpu_session._read_json)})
    assert record["steps"]["a"]["failed"] == "no time was left of the session"


def test_the_time_of_all_steps_together_is_nine_minutes():
    assert gpu_session._SESSION_S == 540


def test_similarity_is_rehearsed_on_the_stand_in(tmp_path):
    step = gpu_session.STEPS["similarity"]
    found = gpu_session.run_step("similarity", step, tmp_path, gpu_session._REHEARSED, 200)
    rows = [each for each in found["result"] if each["wall_s"]]
    assert {("ours, GPU", 300), ("ours, GPU", 500)} <= {(each["contestant"], each["n"]) for each in rows}
    assert all(each["exactness"]["n_wrong"] == 0 for each in rows)
    assert all(each["wall_s"] or each["skipped"] for each in found["result"])
    record = {"gpu": "rehearsal", "measured_at": "now", "steps": {"similarity": found}}
    assert gpu_figure.table(record).count("0 wrong neighbours") == len(rows)


def test_plans_of_torch_are_rehearsed_on_the_cpu(tmp_path):
    """Planned and trained as on a GPU, where alone PyTorch's allocator has peaks."""
    pytest.importorskip("torch")
    found = gpu_session.run_step("torch", gpu_session.STEPS["torch"], tmp_path, gpu_session._REHEARSED, 200)
    (of_resnet,) = found["result"]
    low, high = of_resnet["planned"]
    weights_bytes = 25_557_032 * 4  # of ResNet-50, torchvision's own number
    assert 4 * weights_bytes < low < high < 9 * weights_bytes  # with gradients and AdamW's two moments
    assert of_resnet["allocated"] is None
    assert 5 < of_resnet["final_loss"] < 12  # near log(1000)


def test_peaks_of_torch_stand_beside_their_plans():
    each = {"what": "ResNet-50", "planned": [2 * 2**30, 3 * 2**30], "allocated": 2.1 * 2**30}
    assert gpu_figure.summary("torch", [each | {"reserved": 2.5 * 2**30}]).endswith(
        "1.050 of the plan; reserved 2.50 GiB, inside its band"
    )
    assert "OUTSIDE" in gpu_figure.summary("torch", [each | {"reserved": 3.1 * 2**30}])


@pytest.mark.skipif(shutil.which("nsys") is not None, reason="there is Nsight here")
def test_nsight_is_asked_only_where_it_is(tmp_path):
    found = gpu_session.run_step("timeline", gpu_session.STEPS["timeline"], tmp_path, gpu_session._REHEARSED, 100)
    assert found["failed"] == "nsys is not installed"
