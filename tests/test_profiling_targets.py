"""Whatever runs Python can be profiled: scripts, coroutines, applications, processes; and what goes wrong is said."""

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiling_helpers import QUICK, alive, by_name, tools_used
from typer.testing import CliRunner

from altlas_lib import cli, profiling
from altlas_lib.profiling.record.measure import time_lines, timed_run
from altlas_lib.profiling.run.asgi import application, load_requests
from altlas_lib.profiling.run.targets import FunctionKey, Runnable, prepare, target_kind
from altlas_lib.profiling.show import terminal
from altlas_lib.results import FunctionTime, LineTime, Quantity, WorkloadProfile

# Scripts ----------------------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys
    import json
    import os
    before = sorted({{"numpy", "scipy", "pandas"}} & set(sys.modules))
    import {helper}

    def work(n):
        return [{helper}.square(i) for i in range(n)]

    if __name__ == "__main__":
        with open(sys.argv[1], "a") as file:
            environment = sorted(set(os.environ) - {{"ALTLAS_PROFILING", "KMP_DUPLICATE_LIB_OK"}})
            seen = [before, sys.argv, sys.path[0], __file__, __name__, environment, work(int(sys.argv[2]))]
            print(json.dumps(seen), file=file)
        sys.exit()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is text")
def test_what_is_not_utf_8_is_named_before_anything_runs(folder):
    script = folder / os.fsdecode(b"caf\xe9.py")
    script.write_text("import pathlib; pathlib.Path('ran').touch()")
    with pytest.raises(profiling.ProfilingError, match=r"'.*caf\\udce9.py' is not UTF-8.*rename it"):
        profiling.profile(str(script), **QUICK)
    plain = script.rename(folder / "plain.py")
    with pytest.raises(profiling.ProfilingError, match=r"'\\udce9' is not UTF-8"):
        profiling.profile(str(plain), argv=["\udce9"], **QUICK)
    assert not Path("ran").exists()


def test_an_error_of_the_target_with_half_a_character_is_said(folder):
    script = folder / "fails.py"
    script.write_text("raise ValueError('caf\\udce9')")
    with pytest.raises(profiling.ProfilingError, match=r"raised ValueError: caf\\udce9 at"):
        profiling.profile(str(script), **QUICK)


def test_a_script_runs_as_python_would_run_it(write, folder, py_spy_permitted):
    """Same arguments, path, environment, modules and output as under `python script.py`, with every tool."""
    helper = write("def square(i): return i * i")
    (folder / "scripts").mkdir()
    (folder / f"{helper}.py").rename(folder / "scripts" / f"{helper}.py")
    script = folder / "scripts" / "tool.py"
    script.write_text(textwrap.dedent(SCRIPT.format(helper=helper)))
    subprocess.run([sys.executable, script, "plain.txt", "30000"], check=True, env=dict(os.environ))
    options = {**QUICK, "n_line_functions": 2, "trace_arrays": True}
    profile = profiling.profile(str(script), argv=["profiled.txt", 30000], **options)
    plain, *others = Path("plain.txt").read_text().splitlines()
    assert not others
    expected = json.loads(plain.replace("plain.txt", "profiled.txt"))
    runs = [json.loads(line) for line in Path("profiled.txt").read_text().splitlines()]
    for run in runs:
        assert run[1:] == expected[1:]
    assert expected[0] == []
    loaded_before = [bool(before) for before, *_ in runs]
    assert not any(loaded_before[:-1])  # the array tracer's own run, the last one, finds NumPy loaded
    assert profile.target == f"{script} profiled.txt 30000"
    assert profile.workload == "tool"
    functions = by_name(profile)
    assert {"<module>", "work", "square"} == set(functions)
    assert functions["work"].file == script.name
    assert functions["square"].n_calls == 30000
    assert {line.n_hits for line in functions["work"].lines} >= {1}
    assert tools_used(profile) == ["cProfile", "py-spy", "line_profiler", "array trace"]
    assert any("imports" in note for note in profile.notes)


HOSTILE_SCRIPT = """
    import os, pathlib, subprocess, sys

    pathlib.Path("pids").touch()
    os.mkdir("new")  # the next run starts in the folder that this one started in
    os.chdir("new")
    os.rmdir("../new")
    sys.stderr.write("x" * 3_000_000)
    print("y" * 3_000_000)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen(sleep, start_new_session=True)  # no longer in our process group
    pid = os.fork()
    if pid == 0:
        sys.exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
        file.write(f"{status} {left.pid}\\n")
"""


def test_a_script_that_changes_its_process_forks_and_leaves_processes_behind(write, folder, capfd):
    before = dict(os.environ)
    profile = profiling.profile(f"{write(HOSTILE_SCRIPT)}.py", **QUICK)
    runs = [line.split() for line in Path("pids").read_text().splitlines()]
    assert len(runs) >= 4
    assert {status for status, _ in runs} == {"1"}  # its own fork ends as a failure, and does not go on with our work
    assert not any(alive(int(pid)) for _, pid in runs)
    assert profile.total.n_runs >= 1
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before
    assert Path.cwd() == folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit(3)", r"ended by sys.exit\(3\): expected an end without a failure"),
        ("1 / 0", "raised ZeroDivisionError: division by zero at .*without the profiler first"),
        ("import os; os.mkdir('made')", "raised FileExistsError: .*make it run without the profiler first, again and again"),
        ("input('name? ')", "raised EOFError: .*standard input is empty"),
        ("import os; os._exit(7)", "with status 7 before it returned"),
        ("def f(:\n    pass", r"no Python source \(invalid syntax \(user_.*\.py, line 1\)"),
        ("x = 1\0", "no Python source"),
    ],
)
def test_a_script_that_fails(write, source, message):
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(f"{write(source)}.py", **QUICK)


def test_files_that_are_no_scripts(folder):
    (folder / "package").mkdir()
    (folder / "program").write_bytes(b"\x7fELF\x02\x01\xff\xfe" * 100)
    (folder / "latin.py").write_bytes(b"name = '\xe9'\n")
    for target, message in {
        "package": r"no Python source \(.*Is a directory",
        "program": "no Python source",
        "latin.py": "no Python source",
        "lateen.py": r"no such file; did you mean 'latin\.py'",
        "no/such/file.py": "no such file; the current folder is",
    }.items():
        with pytest.raises(profiling.ProfilingError, match=message):
            profiling.profile(target, **QUICK)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("script.py", {"setup": "json:dumps"}, "is a script, for which setup mean"),
        ("script.py", {"arguments": {"n": 1}}, "it takes argv"),
        ("json:dumps", {"argv": ["1"]}, "is a function, for which argv mean"),
        (
            "json:dumps",
            {"requests": [], "arguments": {"n": 1}},
            "web application, for which arguments mean nothing; it takes requests",
        ),
    ],
)
def test_options_that_do_not_fit_the_target(folder, target, options, message):
    (folder / "script.py").touch()
    with pytest.raises(profiling.ProfilingError, match=message):
        profiling.profile(target, **options)


# Coroutines and applications ----------------------------------------------------------------------------------------------

APP = """
    import asyncio, json, pathlib, time

    def burn(seconds):
        stop = time.thread_time() + seconds
        while time.thread_time() < stop:
            pass

    def in_thread():
        burn(0.15)

    async def inner():
        burn(0.15)

    async def coroutine():
        await inner()
        await asyncio.sleep(0.01)

    async def answer(scope, body):
        assert scope["state"] == {"started": 1}
        match scope["path"]:
            case "/coroutine":
                await coroutine()
            case "/thread":
                await asyncio.to_thread(in_thread)
            case "/echo":
                return 200, body.decode()
            case "/raise":
                raise KeyError("boom")
            case "/fail":
                return 503, "down"
            case _:
                return 404, "what?"
        return 200, "done"

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["started"] = 1
            pathlib.Path("lifespan").open("a").write("started ")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            pathlib.Path("lifespan").open("a").write("stopped ")
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, text = await answer(scope, (await receive())["body"])
        with pathlib.Path("answers").open("a") as file:
            file.write(json.dumps([scope["method"], scope["path"], status, text]) + "\\n")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    def create_app():
        return app

    async def broken_start(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def without_lifespan(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


def test_a_coroutine_is_charged_and_not_the_event_loop(write, py_spy_permitted):
    profile = profiling.profile(f"{write(APP)}:coroutine", **QUICK)
    functions = by_name(profile)
    assert set(functions) == {"coroutine", "inner", "burn"}
    assert functions["burn"].sampled_own_share > 0.75
    assert functions["inner"].sampled_share == pytest.approx(functions["burn"].sampled_own_share, abs=0.1)
    assert functions["coroutine"].sampled_share == 1  # the root: its wait is its own
    assert profile.cprofile_share(functions["burn"]) > 0.75
    assert functions["inner"].n_calls == 1


def test_an_application_is_charged_by_coroutine_and_worker_thread(write, folder, py_spy_permitted):
    user = write(APP)
    requests = folder / "requests.jsonl"
    echo = {"method": "PUT", "path": "/echo", "json": {"a": [1]}, "headers": {"content-type": "application/json"}}
    lines = [{"path": "/coroutine"}, {"path": "/thread"}, {"path": "/none"}, echo]
    requests.write_text("\n\n".join(map(json.dumps, lines)))
    profile = profiling.profile(f"{user}:create_app()", requests=requests, **{**QUICK, "sampling_s": 1.5})
    functions = by_name(profile)
    assert functions["in_thread"].own is functions["in_thread"].n_calls is None  # cProfile sees the calling thread only
    shares = [functions[name].sampled_share for name in ("in_thread", "inner")]
    assert min(shares) > 0.2  # half of the time each; a busy machine may give one more of it
    assert sum(shares) > 0.65  # the loop's wait for the thread is the thread's, not the application's
    assert any(stack.endswith("in_thread;burn;[interpreter]") for stack in profile.stacks)
    assert profile.target == f"{user}:create_app() under 4 requests"
    assert "request 3 (GET /none) was answered with 404: 'what?'" in profile.notes
    answers = {tuple(json.loads(line)) for line in Path("answers").read_text().splitlines()}
    assert ("PUT", "/echo", 200, '{"a":[1]}') in answers
    assert len(answers) == 4
    assert Path("lifespan").read_text() == "started stopped "  # once, for all tools


@pytest.mark.parametrize(
    ("name", "requests", "message"),
    [
        (
            "app",
            [{"path": "/raise"}],
            r"none of 1 requests: request 1 \(GET /raise\) raised KeyError: 'boom' at .*make it answer",
        ),
        ("app", [{"path": "/fail"}] * 2, r"none of 2 requests: request [12] \(GET /fail\) was answered with 503: 'down'"),
        ("broken_start", [{"path": "/"}], "its startup failed: no database"),
        ("no_app", [{"path": "/"}], "has no 'no_app'; did you mean"),
    ],
)
def test_an_application_that_fails(write, monkeypatch, folder, name, requests, message):
    monkeypatch.syspath_prepend(folder)
    with (
        pytest.raises(profiling.ProfilingError, match=message),
        application(f"{write(APP)}:{name}", load_requests(requests)) as runnable,
    ):
        runnable.run()


def test_an_application_without_lifespan_and_a_callable_one(write, monkeypatch, folder):
    monkeypatch.syspath_prepend(folder)
    user = write(APP)
    with application(f"{user}:without_lifespan", load_requests([{"path": "/"}] * 5)) as runnable:
        assert timed_run(runnable, "none").wall_s > 0
    module = __import__(user)
    profile = profiling.profile(module.app, requests=[{"path": "/echo", "body": "hello"}], **QUICK)
    assert "answer" in by_name(profile)
    with pytest.raises(
        profiling.ProfilingError, match="missing 3 required positional arguments: 'scope', 'receive', and 'send'"
    ):
        profiling.profile(module.app)


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("raise OSError('disk full')", "OSError: disk full at "),
        ("await send({'type': 'lifespan.shutdown.failed', 'message': 'disk full'})", "disk full"),
    ],
)
def test_an_error_at_the_end_of_an_application_is_noted(write, folder, ending, message):
    user = write(f"""
        async def app(scope, receive, send):
            await receive()
            if scope["type"] == "lifespan":
                await send({{"type": "lifespan.startup.complete"}})
                await receive()
                {ending}
                return
            await send({{"type": "http.response.start", "status": 200, "headers": []}})
            await send({{"type": "http.response.body", "body": b"done"}})
    """)
    profile = profiling.profile(f"{user}:app", requests=[{"path": "/"}], **QUICK)
    (note,) = (note for note in profile.notes if "shutdown failed" in note)
    assert note.startswith(f"the application's shutdown failed: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is none in it"),
        ("{'path': '/'}", "line 1: Invalid JSON"),
        ('{"path": "/"}\n\n{"path": 7}', "line 3, path: Input should be a valid string"),
        ('{"path": "/", "verb": "GET"}', "line 1, verb: Unexpected keyword"),
        ('{"method": "GET"}', "line 1, path: "),
        ('{"path": "/", "json": 1, "body": "1"}', "json and body exclude each other"),
        ("[]", r'line 1: .*expected \{"method": "POST"'),
        ('{"path": "/a"}\n{"path": "/b", "headers": {"x-name": "Zoë"}}', r"line 2: .*header 'x-name': 'Zoë' is not ASCII"),
        ('{"path": "//[::1/a"}', r"line 1: .*path '//\[::1/a' is no path .*; a path begins with one slash"),
        (r'{"path": "/a\nb"}', r"line 1: .*path '/a\\nb': .*non-printable.*; percent-encode it"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_request_scripts_that_cannot_be_read(folder, content, message):
    file = folder / "requests.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(profiling.ProfilingError, match=message):
        load_requests(file)
    with pytest.raises(profiling.ProfilingError, match="cannot be read"):
        load_requests(folder / "none.jsonl")


def test_a_coroutine_can_be_profiled_where_an_event_loop_runs():
    async def target():
        await asyncio.sleep(0)

    async def notebook():
        return profiling.profile(target, **QUICK)

    assert {function.name.rpartition(".")[2] for function in asyncio.run(notebook()).functions} == {"target"}


# Measurements ---------------------------------------------------------------------------------------------------------------


def test_lines_of_nested_decorated_and_recursive_functions_and_the_code_afterwards():
    @functools.cache
    def cached(n):
        return [i for i in range(n)]  # noqa: C416

    def outer(n):
        def inner(k):
            if k == 0:
                return 0
            return 1 + inner(k - 1)

        return inner(n)

    class Shape:
        @property
        def area(self):
            return outer(5)

    def main():
        cached(10), cached(10)
        return Shape().area

    inner = next(constant for constant in outer.__code__.co_consts if hasattr(constant, "co_code"))
    codes = [cached.__wrapped__.__code__, inner, Shape.area.fget.__code__]
    before = [each.__code__ for each in (outer, cached.__wrapped__, Shape.area.fget, main)]
    runnable = Runnable("main", main, FunctionKey.of(main.__code__))
    lines = time_lines(runnable, [FunctionKey.of(code) for code in codes]).lines
    assert [each.__code__ for each in (outer, cached.__wrapped__, Shape.area.fget, main)] == before
    assert all(now is then for now, then in zip((outer.__code__, main.__code__), (before[0], before[-1]), strict=True))
    hits = {key.name.rpartition(".")[2]: [each["n_hits"] for each in sorted(own, key=str)] for key, own in lines}
    assert hits == {"cached": [1], "inner": [6, 1, 5], "area": [1]}
    assert all(sum(each["share"] for each in own) == pytest.approx(1) for _, own in lines)


# The terminal -----------------------------------------------------------------------------------------------------------------


def altlas(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_the_command_prints_tables_and_writes_the_profile(write, folder, py_spy_permitted, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    user = write("""
        import numpy as np

        def cosine(x):  # on lines of their own: under Python 3.13 line_profiler does not see a function of one line
            return (x @ x.T) / np.linalg.norm(x, axis=1)

        def main(n):
            return cosine(np.ones((n, 64)))
    """)
    result = altlas("--arg", "n=500", "--for", "0.3", "--gpu", "T4", "--json", "profile.json", f"{user}:main")
    assert result.returncode == 0, result.stderr
    assert all(len(line) <= 120 for line in result.stdout.splitlines())
    for expected in ("one run: ", "where the time goes", "arrays", "hottest lines", "cosine: ", "own, py-spy", "ms of a run"):
        assert expected in result.stdout
    assert "cosine" in by_name(WorkloadProfile.model_validate_json(Path("profile.json").read_bytes()))
    assert [path.name for path in folder.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == ["profile.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_script.py"], "no such file"),
        (["json:dumps", "--gpu", "T4"], "is a function, for which argv mean"),
        (["--gpu", "T5000", "json:dumps"], "T5000"),
        (["--arg", "n", "json:dumps"], "expected NAME=JSON"),
        (["--arg", "n=x", "json:dumps"], "expected NAME=JSON, such as --arg n=100"),
        (["--json", "no/such/folder/x.json", "json:dumps"], "no folder"),
    ],
)
def test_what_the_user_can_mend_is_one_message(arguments, message):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(cli.app, ["profile", *arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_behind(write, folder, ending):
    user = write("""
        import os, pathlib, time

        def main():
            with open("pids", "a") as file:
                file.write(f"{os.getpid()} ")
            time.sleep(600)
    """)
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", "--json", "out.json", f"{user}:main"]
    reset = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # CI may ignore it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=reset) as process:
        while not Path("pids").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(ending)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not any(alive(int(pid)) for pid in Path("pids").read_text().split())
    assert not Path("out.json").exists()


@given(st.text(max_size=300), st.text(max_size=300), st.integers(0, 10**9))
def test_text_from_data_neither_steers_the_terminal_nor_widens_it(name, source, n_calls):
    time_ = Quantity.measured([1.0], "s", "a CPU")
    function = FunctionTime(
        name=name,
        file=name,
        line=1,
        n_calls=n_calls,
        own=time_,
        cumulative=time_,
        own_by_class={"regex": 1.0},
        lines=[LineTime(line=1, source=source, n_hits=1, share=1)],
    )
    profile = WorkloadProfile(workload="w", target=source, total=time_, functions=[function], notes=[source])
    text = terminal.format_profile(profile)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert all(len(line) <= 120 for line in text.splitlines()[1:])


# Names ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("a.b:c", "function"), ("a:b.c", "function"), ("a:create()", "function")])
def test_what_a_name_means(name, kind):
    assert target_kind(name) == kind


def test_a_script_may_have_any_name(folder):
    (folder / "tool").write_text("#!/usr/bin/env python3\nprint('hello')\n")
    assert prepare("tool").root == FunctionKey(str(folder / "tool"), 1, "<module>")


def test_a_limit_of_no_time_is_refused_by_its_option():
    result = CliRunner().invoke(cli.app, ["profile", "--time-limit", "0", "json:dumps"])
    assert result.exit_code == 2
    assert "--time-limit" in result.stderr


def test_an_application_that_answers_nothing_is_no_profile(write, folder):
    user = write(APP)
    requests = [{"path": "/none"}, {"path": "/none?a=b"}]
    with pytest.raises(
        profiling.ProfilingError,
        match=r"none of 2 requests: request 1 \(GET /none\) was answered with 404: .*mend",
    ):
        profiling.profile(f"{user}:create_app()", requests=requests, **QUICK)


def test_what_is_piped_in_is_said_not_to_be_passed_on(write, folder):
    user = write("import sys\nprint(len(sys.stdin.read()))\nsum(range(10**5))")
    command = [sys.executable, "-m", "altlas_lib.cli", "profile", "--for", "0.3", f"{user}.py"]
    done = subprocess.run(command, input="hello", capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "what is piped in is not passed on" in done.stderr
