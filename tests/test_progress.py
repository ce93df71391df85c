"""Progress with the time left: on a terminal and in a notebook that somebody works in; nothing where nobody looks."""

import os
import re
import subprocess
import sys
import threading

import pytest
from jupyter_client.manager import start_new_kernel

from altlas_lib.progress import progress_bar

termios = pytest.importorskip("termios", reason="Windows has no pseudo-terminals")

SOON = "from altlas_lib import progress; progress._DELAY_S, progress._REFRESH_S = 0, 0.05"
WAIT = f"{SOON}\nimport time\nwith progress.progress_bar('wait') as report:\n    time.sleep(0.4)\n    report and report(0.5)"
LONG_CALLS = {
    "top_k": """
import numpy as np
from altlas_lib import similarity
similarity.top_k(np.random.default_rng(0).random((20_000, 256), "float32"), device="cpu", method="float32")
""",
    "profile": """
from altlas_lib import profiling
profiling.profile("textwrap:dedent", arguments={"text": " a"}, sampling_s=0.2)
""",
    "largest batch": """
import time
from altlas_lib.training.plan import planner
from altlas_lib.training.plan.request import StepCost
def compile_soon(requests, time_limit_s):
    time.sleep(0.15)  # a bar is drawn ten times a second at most
    return [StepCost(bytes_by_part={"temporaries": each.batch_size * 2**28}) for each in requests]
planner.compile_steps, planner.has_compiler = compile_soon, lambda: True
assert planner.largest_batch("quick", "T4", dtype_policy="float64").configuration["batch_size"] > 8
""",
    "fit": """
import keras, numpy as np
from altlas_lib import training
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
training.fit(model, (np.ones((64, 3), "float32"), np.ones((64, 1), "float32")), n_epochs=40, batch_size=8)
""",
}


def run_on_terminal(code):
    """What a child process writes on a stderr that is a terminal."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 80))
    chunks = []

    def read():
        try:
            while chunk := os.read(ours, 2**16):
                chunks.append(chunk)
        except OSError:  # Linux: the last who could write has gone
            pass

    reading = threading.Thread(target=read)
    reading.start()
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], stderr=its, stdout=subprocess.PIPE, env=quiet)
    os.close(its)
    reading.join()
    os.close(ours)
    assert done.returncode == 0, b"".join(chunks).decode()
    return b"".join(chunks).decode()


@pytest.mark.parametrize("what", LONG_CALLS)
def test_a_long_call_shows_on_a_terminal_what_is_done_and_the_time_left(what):
    if what == "fit":
        pytest.importorskip("tensorflow")
    shown = run_on_terminal(f"{SOON}\n{LONG_CALLS[what]}")
    assert (shares := [int(share) for share in re.findall(rf"{what}: +(\d+)%.* gone, .* left", shown.replace("\r", "\n"))])
    assert shares == sorted(shares)
    assert shares[-1] > 0
    assert shown.replace("\r", "\n").splitlines()[-1].strip() == ""  # it is wiped away at the end


def test_nothing_is_written_where_stderr_is_no_terminal():
    calls = "\n".join(call for what, call in LONG_CALLS.items() if what != "fit")
    done = subprocess.run([sys.executable, "-c", f"{SOON}\n{calls}"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_keras_own_bar_is_not_shown_twice():
    pytest.importorskip("tensorflow")
    code = LONG_CALLS["fit"].replace("batch_size=8", "batch_size=8, verbose=2")
    assert "gone" not in run_on_terminal(f"{SOON}\n{code}")


def test_what_takes_less_than_two_seconds_shows_nothing():
    code = "from altlas_lib.progress import progress_bar\nwith progress_bar('short') as report:\n    report(0.5)"
    assert run_on_terminal(code) == ""


def test_a_call_within_a_call_shows_no_bar_of_its_own():
    within = f"{WAIT}\n    with progress.progress_bar('inner') as inner:\n        assert inner is None\n"
    assert "inner" not in run_on_terminal(within)


def test_a_function_that_is_given_is_called_instead():
    shares = []
    with progress_bar("call", shares.append) as report:
        report(0.25)
    assert shares == [0.25]
    with progress_bar("call", False) as report:
        assert report is None


def test_a_bar_ends_with_an_error_and_leaves_no_thread():
    code = f"""{SOON}
import threading
try:
    with progress.progress_bar("wait"):
        1 / 0
except ZeroDivisionError:
    assert threading.active_count() == 1
with progress.progress_bar("again") as report:
    assert report
"""
    run_on_terminal(code)


def run_in_kernel(code, **metadata):
    """What a notebook shows of a cell: the types of the messages, and all text."""
    manager, client = start_new_kernel()
    try:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = client.session.msg("execute_request", content | {"stop_on_error": True}, metadata=metadata)
        client.shell_channel.send(message)
        types, shown = set(), ""
        while True:
            heard = client.get_iopub_msg(timeout=60)
            if heard["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            assert heard["msg_type"] != "error", heard["content"]
            types.add(heard["msg_type"])
            shown += heard["content"].get("text", "")
            if heard["content"].get("execution_state") == "idle":
                return types, shown
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(("metadata", "is_shown"), [({"cellId": "a1"}, True), ({}, False)], ids=["by hand", "headless"])
def test_a_notebook_shows_progress_where_somebody_runs_its_cells(metadata, is_shown):
    """JupyterLab and VS Code say which cell it is; papermill and nbconvert, by nbclient, do not."""
    _, shown = run_in_kernel(WAIT, **metadata)
    assert ("wait:" in shown) == is_shown
    assert ("left" in shown) == is_shown


def test_a_table_as_text_shows_nothing_by_itself_in_a_notebook():
    types, shown = run_in_kernel("from altlas_lib import tables\ntext = tables.show([{'a': 1}]).text(80)\nprint(len(text) > 0)")
    assert shown == "True\n"
    assert "display_data" not in types
