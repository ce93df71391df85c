"""One child process for all tools, whatever the target does to it; and nothing of it stays behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiling_helpers import QUICK, alive, by_name, notes, tools_used

from altlas_lib import profiling
from altlas_lib.profiling.run import process
from altlas_lib.profiling.run.process import Child, ChildEnded

ALL = {**QUICK, "n_line_functions": 2, "trace_arrays": True}

BURN = """
    import os, sys, time

    def burn(seconds=0.02):
        stop = time.process_time() + seconds
        while time.process_time() < stop:
            pass

    def is_line_profiled():
        monitoring = getattr(sys, "monitoring", None)
        return sys.gettrace() or (monitoring and monitoring.get_tool(monitoring.PROFILER_ID) == "line_profiler")
"""


def test_one_process_imports_and_sets_up_once_for_all_tools(write, py_spy_permitted):
    user = write(
        BURN
        + """
    with open("log", "a") as file:
        print("import", os.getpid(), file=file)

    def prepare():
        with open("log", "a") as file:
            print("setup", os.getpid(), file=file)
        return 0.02

    def main(seconds):
        with open("log", "a") as file:
            print("run", os.getpid(), file=file)
        burn(seconds)
    """
    )
    profile = profiling.profile(f"{user}:main", setup=f"{user}:prepare", **ALL)
    log = [line.split() for line in Path("log").read_text().splitlines()]
    assert [what for what, _ in log[:3]] == ["import", "setup", "run"]
    assert [what for what, _ in log].count("import") == [what for what, _ in log].count("setup") == 1
    assert len({pid for _, pid in log}) == 1
    assert profile.n_runs == len(log) - 2  # the number that the user is told is the real one
    assert tools_used(profile) == ["cProfile", "py-spy", "line_profiler", "array trace"]


@pytest.mark.parametrize(
    ("tool", "when", "ending", "said"),
    [
        ("line_profiler gave no lines", "is_line_profiled()", "os.abort()", "by signal 6 (Aborted)"),
        ("line_profiler gave no lines", "is_line_profiled()", "os._exit(3)", "with status 3"),
        ("no trace of arrays", "is_traced()", "os.kill(os.getpid(), 11)", "by signal 11 (Segmentation fault"),
        ("no trace of arrays", "is_traced()", "os.execv('/bin/sleep', ['sleep', '600'])", "starting another program in it"),
    ],
)
def test_a_crash_under_one_tool_leaves_the_others_their_turn(write, py_spy_permitted, tool, when, ending, said):
    user = write(
        BURN
        + f"""
    def is_traced():  # the tracer puts code of its own in place of the user's
        return burn.__code__.co_code != CODE and not is_line_profiled()

    CODE = burn.__code__.co_code

    def main():
        if {when}:
            {ending}
        burn()
    """
    )
    profile = profiling.profile(f"{user}:main", **ALL)
    (note,) = notes(profile)
    assert note.startswith(f"{tool}: ")
    assert said in note
    expected = ["cProfile", "py-spy", "line_profiler", "array trace"]
    expected.remove("line_profiler" if "lines" in tool else "array trace")
    assert tools_used(profile) == expected
    assert by_name(profile)["burn"].sampled_own_share > 0.8


def test_a_tool_that_overruns_leaves_the_others_their_turn(write, py_spy_permitted):
    user = write(
        BURN
        + """
    def main():
        while is_line_profiled():
            pass
        burn()
    """
    )
    profile = profiling.profile(f"{user}:main", **{**ALL, "time_limit_s": 12})
    assert any(note.startswith("line_profiler gave no lines: ") and "time_limit_s=12" in note for note in profile.notes)
    assert tools_used(profile) == ["cProfile", "py-spy", "array trace"]


HOSTILE = {
    "closes all sockets": "[each.close() for each in gc.get_objects() if isinstance(each, socket.socket)]",
    "sets a timeout": "socket.setdefaulttimeout(0.001)",
    "forks, and its child goes on": "os.fork() or sys.exit(0)",
    "leaves a child with all descriptors": "os.fork() or time.sleep(600)",
    "prints": "print('x' * 3_000_000); sys.stderr.write('y' * 3_000_000); os.write(2, b'z' * 3_000_000)",
    "ignores signals": "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 3, 13, 15)]",
    "leaves its process group": "os.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None",
    "ends its threads late": "threading.Thread(target=time.sleep, args=[600]).start()",
    "registers an endless exit": "atexit.register(time.sleep, 600)",
    "changes json": "json.dumps = json.loads = None",
    "changes the clock": "time.monotonic = time.perf_counter = lambda: 0.0",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_target_neither_breaks_the_connection_nor_outlives_the_profile(write, monkeypatch, capfd, what):
    monkeypatch.setattr(process, "TO_END_S", 0.5)
    user = write(
        BURN
        + f"""
    import atexit, gc, json, signal, socket, threading
    files = []

    def main():
        with open("pids", "a") as file:
            print(os.getpid(), file=file)
        {HOSTILE[what]}
        burn(0.01)
    """
    )
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    profile = profiling.profile(f"{user}:main", **{**ALL, "time_limit_s": 30})
    assert profile.total.value > 0
    if what != "changes the clock":
        assert profile.total.value >= 0.009
    assert by_name(profile)["burn"].own.value > 0
    assert not [note for note in profile.notes if "time_limit" in note]
    assert capfd.readouterr() == ("", "")
    assert not any(alive(int(pid)) for pid in set(Path("pids").read_text().split()))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


def test_threads_and_exit_functions_that_never_end_do_not_hold_up_the_profile(write, monkeypatch):
    monkeypatch.setattr(process, "TO_END_S", 0.5)
    user = write("""
        import atexit, threading, time

        def main():
            atexit.register(time.sleep, 600)
            threading.Thread(target=time.sleep, args=[600]).start()
    """)
    start = time.monotonic()
    assert profiling.profile(f"{user}:main", **QUICK).total.low < 1
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("os.execv('/bin/sleep', ['sleep', '600'])", "by closing all its descriptors or starting another program in it"),
        ("os.closerange(3, 4096)", r"with status 1 before it returned \(last on stderr: OSError: .* Bad file descriptor"),
    ],
)
def test_a_target_that_replaces_its_process_or_closes_all_is_found_out_at_once(write, ending, message):
    user = write(f"import os\ndef main():\n    {ending}")
    start = time.monotonic()
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(f"{user}:main", time_limit_s=100)
    assert time.monotonic() - start < 60


KILLED = """
    import os, re, subprocess, sys

    def main():
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        apart = subprocess.Popen(sleep, start_new_session=True)
        without_environment = subprocess.Popen(sleep, env={})
        with open("pids.new", "w") as file:
            file.write(f"{os.getpid()} {apart.pid} {without_environment.pid}")
        os.rename("pids.new", "pids")
        re.match("(a*)*b", "a" * 60)  # for ever, and no other thread of the process gets a turn
"""


def test_kill_9_of_the_command_ends_the_target_and_what_it_started(write, folder):
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", f"{write(KILLED)}:main"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command_process:
        while not Path("pids").exists() and command_process.poll() is None:
            time.sleep(0.05)
        pids = [int(pid) for pid in Path("pids").read_text().split()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        command_process.send_signal(signal.SIGKILL)
    assert not any(alive(pid) for pid in pids)  # within five seconds each, far below the time limit
    guards = [each for each in psutil.process_iter() if process.__file__ in _command_line(each)]
    assert not any(alive(each.pid) for each in guards if each.ppid() == 1)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_process_that_cannot_be_killed_is_named_and_holds_up_nothing(write, monkeypatch):
    monkeypatch.setattr(process, "TO_DIE_S", 0.3)
    monkeypatch.setattr(psutil.Process, "kill", lambda self: (_ for _ in ()).throw(psutil.AccessDenied(self.pid)))
    user = write("""
        import pathlib, subprocess, sys

        def main():
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            pathlib.Path("pid").write_text(str(subprocess.Popen(sleep, start_new_session=True).pid))
    """)
    profile = profiling.profile(f"{user}:main", **QUICK)
    pid = int(Path("pid").read_text())
    try:
        (note,) = (note for note in profile.notes if "would not end" in note)
        assert str(pid) in note
    finally:
        for found in psutil.process_iter():
            if "import time; time.sleep(600)" in _command_line(found):
                os.kill(found.pid, signal.SIGKILL)


def test_processes_that_come_and_go_while_they_are_looked_for(monkeypatch):
    class Gone:
        pid = 4194000

        def environ(self):
            raise psutil.ZombieProcess(self.pid)

    class Forbidden(Gone):
        def environ(self):
            raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil, "process_iter", lambda: [Gone(), Forbidden()])
    assert process.end_marked("no such mark") == []


# The connection -------------------------------------------------------------------------------------------------------------

ECHO = """
    import os, sys, time
    from multiprocessing.connection import Connection

    def main(descriptor):
        connection = Connection(descriptor)
        def send(text): connection.send_bytes(text.encode())
        send("hello")
        while line := connection.recv():
            match line.split(maxsplit=1):
                case ["exit", status]:
                    send("bye")
                    os._exit(int(status))
                case ["sleep", seconds]:
                    time.sleep(float(seconds))
                    send("slept")
                case _:
                    send(line)
        send("last words")
"""


@contextlib.contextmanager
def ended_afterwards(child: Child) -> Iterator[Child]:
    try:
        yield child
    finally:
        assert child.end() == []


@pytest.fixture
def echo(write, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    with ended_afterwards(Child(write(ECHO))) as child:
        assert child.receive(30) == "hello"
        yield child


@given(text=st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: f"={text}"))
def test_any_message_arrives_whole(echo_of_all, text):
    echo_of_all.send(text)
    assert echo_of_all.receive(10) == text


@pytest.fixture(scope="module")
def echo_of_all(tmp_path_factory):
    import textwrap

    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo_of_all.py").write_text(textwrap.dedent(ECHO))
    sys.path.insert(0, str(folder))
    with ended_afterwards(Child("echo_of_all")) as child:
        assert child.receive(30) == "hello"
        yield child
    sys.path.remove(str(folder))


def test_long_messages_and_the_last_one(echo):
    text = json.dumps("x" * 5_000_000)
    for _ in range(2):
        echo.send(text)
        assert echo.receive(30) == text
    echo.send(None)
    assert echo.receive(30) == "last words"
    with pytest.raises(ChildEnded, match="with status 0"):
        echo.receive(30)


def test_a_deadline_and_an_end_are_told_apart(echo):
    echo.send("sleep 0.3")
    assert echo.receive(0.05) is None
    assert echo.receive(30) == "slept"
    echo.send("exit 7")
    assert echo.receive(30) == "bye"  # what it said before its end is not lost
    with pytest.raises(ChildEnded, match=r"with status 7 .*last on stderr: nothing"):
        echo.receive(30)
    echo.send("too late")  # no error: `receive` says that it has ended
