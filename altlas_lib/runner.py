"""Execute the book's notebooks by papermill into a run's folder: one line each, resumable."""

import contextlib
import errno
import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from . import extras
from .book import Chapter, RunError, find_chapters, load_parameters_file, resolve_parameters, select_chapters
from .manifest import Finished, Manifest
from .paths import UNFINISHED, RunFolder, lock_exclusively, outputs_dir, run_folder, stderr_to
from .results import CHAPTERS, ResultError

_EXTRAS = {"30": "training", "40": "training", "50": "serve"}  # number of a chapter -> what it needs beside `notebooks`


@dataclass
class ChapterFailure(Exception):
    """A cell of a notebook raised."""

    chapter: str
    execution_count: int | None
    source: str
    error: str
    notebook: Path

    def __str__(self) -> str:
        source = "\n".join(f"    {line}" for line in self.source.splitlines())
        so_far = f"executed so far: {self.notebook}\n{_what_next(self.error, RunFolder(self.notebook.parent.parent))}"
        return f"{self.chapter}, In [{self.execution_count}], failed:\n{source}\n{self.error}\n{so_far}"


@contextlib.contextmanager
def _lock(run: RunFolder) -> Iterator[None]:
    """Two runs into one folder would mix their results."""
    with open(run.path / ".lock", "w") as file:
        try:
            lock_exclusively(file)
        except OSError:
            raise RunError(f"run {run.name!r} is in progress elsewhere; wait for it, or choose another --run NAME") from None
        for folder in (run.path, run.executed, run.results, run.figures, run.report):
            for unfinished in folder.glob(f".*{UNFINISHED}"):  # its writer was killed
                unfinished.unlink(missing_ok=True)
        yield


def execute(chapter: Chapter, run: RunFolder, parameters: Mapping[str, Any]) -> None:
    """Run one notebook; `executed/<name>.ipynb` is replaced when it has run to its end.

    Raises:
        ChapterFailure: a cell raised, or the kernel died; what was executed stays in `executed/<name>.failed.ipynb`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    partial = run.executed / f"{chapter.name}.failed.ipynb"
    # papermill takes paths for format strings
    source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (chapter.path, partial))
    try:
        with stderr_to(run.executed / f"{chapter.name}.log"):
            papermill.execute_notebook(
                source,
                target,
                parameters={"run_name": run.name, **parameters},
                kernel_name="python3",
                language="python",
                progress_bar=False,
            )
    except papermill.PapermillExecutionError as error:
        last_line = f"{error.ename}: {error.evalue}".strip().splitlines()[0]
        raise ChapterFailure(chapter.name, error.exec_count, error.source, last_line, partial) from None
    except DeadKernelError:
        cells = nbformat.read(partial, as_version=4).cells
        at = max(i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time"))
        reason = f"the kernel died (out of memory?); its last words are in {run.executed / (chapter.name + '.log')}"
        raise ChapterFailure(chapter.name, cells[at].execution_count, cells[at].source, reason, partial) from None
    os.replace(partial, run.executed / f"{chapter.name}.ipynb")


def _is_done(chapter: Chapter, run: RunFolder, manifest: Manifest, parameters: Mapping[str, Any]) -> bool:
    finished = manifest.finished.get(chapter.name)
    if finished is None or finished.parameters != dict(parameters) or finished.notebook_sha256 != chapter.digest():
        return False
    try:
        for result in CHAPTERS:
            if result.number == chapter.number:
                result.load(run)
    except ResultError:
        return False
    return True


def _leave_out_lacking(selected: Sequence[Chapter], tell: Callable[[str], None]) -> list[Chapter]:
    """The chapters whose extras are installed; of the others the command that adds what they need is told."""
    usable = []
    for chapter in selected:
        extra = _EXTRAS.get(chapter.number)
        if extra is None or extras.is_installed(extra):
            usable.append(chapter)
        else:
            command = extras.command_for(f"notebooks,{extra}", ["run"])
            tell(f"{chapter.name:<32}left out, needs the extra {extra!r}: {command}")
    return usable


def _run_to_resume(name: str | None) -> RunFolder:
    pattern = "*" if name is None else glob.escape(name)
    manifests = sorted(outputs_dir().glob(f"{pattern}/run.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise RunError(f"--resume: no run {name or ''!r} in {outputs_dir()}; start one with `altlas run`")
    return _named_folder(manifests[-1].parent.name if name is None else name)


def _named_folder(name: str) -> RunFolder:
    try:
        return run_folder(name)
    except ValueError as error:
        raise RunError(f"{error}: --run NAME") from None


def _what_next(problem: str, run: RunFolder) -> str:
    full = f"free space on the disk of {run.path} (or set ALTLAS_OUTPUTS to a folder on another)"
    is_full = os.strerror(errno.ENOSPC) in problem or os.strerror(errno.EDQUOT) in problem
    return f"next: {full if is_full else 'mend that'}, then altlas run --resume --run {run.name}"


def run_book(
    *,
    parameters: str | None = None,
    assignments: Sequence[str] = (),
    only: Sequence[str] = (),
    from_: str | None = None,
    resume: bool = False,
    name: str | None = None,
    tell: Callable[[str], None] = print,
) -> RunFolder:
    """Execute the selected notebooks in order, one line each.

    Args:
        parameters: name of a file in `notebooks/parameters/` or a path; `quick` by default.
        assignments: `"name=value"`, which win over the file.
        only, from_: chapters by number or name; all by default.
        resume: go on with run `name` (by default the latest one): what it was asked for still holds where nothing else
            is asked, and the chapters that it finished with the same notebook and parameters are not run again.
        name: the run's folder; by default called like the parameters.
        tell: gets each line of progress.

    Raises:
        RunError: before anything starts: an unknown chapter or parameter, a wrong type, a run in progress.
        ChapterFailure: a notebook failed; the chapters before it stay valid.
    """
    chapters = find_chapters()
    run = _run_to_resume(name) if resume else None
    asked = Manifest.load(run) if run else Manifest()
    selected = select_chapters(chapters, only=only or ([] if from_ else asked.chapters), from_=from_)
    if parameters is not None or not run:
        parameters_path, from_file = load_parameters_file("quick" if parameters is None else parameters)
        name = name or parameters_path.stem
    else:
        from_file = asked.parameters
    values = resolve_parameters(chapters, selected, from_file, assignments)
    for chapter in selected:
        chapter.check(values)
    run = run or _named_folder(name)
    with _lock(run):
        manifest = Manifest.load(run)
        manifest.ask_for(selected, values, chapters)
        usable = _leave_out_lacking(selected, tell)
        if len(usable) < len(selected) and (only or from_):
            raise RunError("nothing was run: install what the chapters above need, or leave them out")
        selected = usable
        while resume and selected and _is_done(selected[0], run, manifest, selected[0].own(values)):
            tell(f"{selected[0].name:<32}done before")
            selected = selected[1:]
        # A later chapter may read what an earlier one found: a resumed run makes all anew from here on. The report, which
        # comes last, reads every result: after any change it is no longer done.
        for chapter in [*selected, *(chapters[-1:] if selected else [])]:
            manifest.finished.pop(chapter.name, None)
        manifest.save(run)
        for chapter in selected:
            started = time.perf_counter()
            try:
                execute(chapter, run, chapter.own(values))
            except OSError as error:  # the executed notebook or its log could not be written
                raise RunError(f"{chapter.name}: {error}; {_what_next(str(error), run)}") from None
            manifest.finished[chapter.name] = Finished(
                parameters=chapter.own(values),
                notebook_sha256=chapter.digest(),
                duration_s=time.perf_counter() - started,
                finished_at=datetime.now(UTC),
            )
            manifest.save(run)
            tell(f"{chapter.name:<32}{manifest.finished[chapter.name].duration_s:6.1f} s")
        if chapters[-1].name in manifest.finished:
            tell(f"report: {run.report}/")
        else:
            tell(f"results: {run.results}/; for a report on them: altlas run --run {run.name} --only {chapters[-1].number}")
    return run
