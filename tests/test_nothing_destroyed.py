"""Writing replaces files only, whole, and says where it failed; what killed writers left is removed."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from altlas_lib import paths, runner
from altlas_lib.book import Chapter, RunError
from altlas_lib.paths import write_atomically


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    write_atomically(tmp_path / "dangling", "new")
    assert (tmp_path / "made").read_text() == "new"


def test_a_fifo_a_device_and_a_link_to_one_stay(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "full").symlink_to("/dev/full")
    for path in (tmp_path / "fifo", tmp_path / "full", tmp_path):
        before = os.lstat(path)
        with pytest.raises(OSError, match="no regular file, which can be replaced; name another") as error:
            write_atomically(path, "x")
        assert str(path) in str(error.value)
        assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_the_command_line_leaves_a_device_what_it_is(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    command = [
        sys.executable,
        "-m",
        "altlas_lib.cli",
        "profile",
        "--json",
        str(tmp_path / "full"),
        "--for",
        "0.1",
        "platform:platform",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "name another" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "full").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == mode


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_atomically(tmp_path / "x", "new")
    assert str(tmp_path / "x") in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_full_disk_in_a_chapter_names_path_chapter_and_next_action(outputs, monkeypatch):
    def full(chapter, run, values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.executed / "x.ipynb"))

    monkeypatch.setattr(runner, "execute", full)
    with pytest.raises(RunError) as error:
        runner.run_book(only=["90"], name="mine", tell=lambda line: None)
    said = str(error.value)
    assert said.startswith("90_report: ")
    assert str(outputs / "mine/executed/x.ipynb") in said
    assert f"free space on the disk of {outputs / 'mine'}" in said
    assert said.endswith("then altlas run --resume --run mine")


def test_a_failure_says_how_to_go_on(outputs):
    notebook = outputs / "mine/executed/30_x.failed.ipynb"
    failure = runner.ChapterFailure("30_x", 4, "save()", "OSError: [Errno 28] No space left on device: '/a/b'", notebook)
    assert f"free space on the disk of {outputs / 'mine'}" in str(failure)
    assert "next: mend that, then altlas run --resume --run mine" in str(
        runner.ChapterFailure("30_x", 4, "1 / 0", "ZeroDivisionError: division by zero", notebook)
    )


def test_the_next_run_removes_what_a_killed_one_left(run, monkeypatch):
    left = [folder / ".environment.json.0123.tmp" for folder in (run.path, run.results, run.figures, run.report, run.executed)]
    kept = [run.results / "a.tmp", run.results / ".hidden", run.path / "serving/.x.tmp"]
    kept[2].parent.mkdir()
    for path in (*left, *kept):
        path.write_text("x")
    monkeypatch.setattr(runner, "execute", lambda chapter, run, values: None)
    monkeypatch.setattr(Chapter, "check", lambda self, values: None)
    runner.run_book(only=["00"], name="test", tell=lambda line: None)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_kill_between_write_and_rename_leaves_the_old_file_and_no_part_under_its_name(tmp_path):
    (tmp_path / "x").write_text("old")
    program = "import os, sys; from pathlib import Path; from altlas_lib import paths; os.fsync = lambda _: os._exit(9);"
    program += "paths.write_atomically(Path(sys.argv[1]), 'new')"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], timeout=60)
    assert done.returncode == 9
    assert (tmp_path / "x").read_text() == "old"
    (left,) = Path(tmp_path).glob(f".*{paths.UNFINISHED}")
    assert left.read_text() == "new"
