"""The book as the runner sees it: its chapters, the parameters that each declares, and the values that they get."""

import ast
import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from pydantic import ValidationError

from . import parameters
from .names import nearest
from .paths import notebooks_dir
from .reading import read_yaml


class RunError(Exception):
    """The run cannot start or did not finish; the message says what to do."""


@dataclass(frozen=True)
class Parameter:
    """A line of a notebook's parameters cell: `n_texts: int = 1000  # texts to embed`."""

    name: str
    type_name: str
    default: Any

    def validate(self, value: Any) -> Any:
        """`value` where it is what the parameter may be (an int may stand for a float, nothing else is converted).

        Raises:
            RunError: it has another type, or is out of range.
        """
        with self._refusing(repr(value)):
            return parameters.adapter(self.name, self.type_name).validate_python(value, strict=True)

    def parse(self, text: str) -> Any:
        """The value that `-p name=text` means: a list is written as JSON, `-p sizes=[100,1000]`."""
        adapter = parameters.adapter(self.name, self.type_name)
        with self._refusing(text):
            return adapter.validate_json(text) if self.type_name.startswith("list") else adapter.validate_strings(text)

    @contextlib.contextmanager
    def _refusing(self, given: str) -> Iterator[None]:
        try:
            yield
        except ValidationError:
            expected = parameters.describe(self.name, self.type_name)
            raise RunError(f"parameter {self.name}={given[:200]}: expected {expected}, such as {self.default!r}") from None


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book and the parameters that it declares."""

    path: Path
    parameters: Mapping[str, Parameter]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    def own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the book's parameter values that this notebook declares."""
        return {name: value for name, value in values.items() if name in self.parameters}

    def check(self, values: Mapping[str, Any]) -> None:
        """Look whether the files, columns, GPUs and runs that its parameters name are there, before anything starts.

        Raises:
            RunError: one is not.
        """
        asked = {name: parameter.default for name, parameter in self.parameters.items()} | self.own(values)
        for name, value in asked.items():
            try:
                parameters.check_existence(name, value, asked)
            except (OSError, ValueError) as error:
                raise RunError(f"{self.name}, parameter {name}={value!r:.200}: {error}") from None

    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares in its one cell tagged `parameters`.

    Raises:
        RunError: not a notebook, no such cell or several, or a line that is not `name: type = literal` with a known type.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except Exception as error:  # nbformat lets many types through for a file that is not a notebook
        raise RunError(f"{notebook.name} is not a notebook ({error}); restore it, or take it out of notebooks/") from None
    sources = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    if len(sources) != 1:
        raise RunError(f"{notebook.name} has {len(sources)} cells tagged 'parameters', expected 1")
    try:
        lines = ast.parse(sources[0]).body
    except SyntaxError as error:
        raise RunError(f"{notebook.name}, parameters cell, line {error.lineno}: {error.msg}") from None
    return {parameter.name: parameter for parameter in (_parse_line(notebook, line) for line in lines)}


def _parse_line(notebook: Path, line: ast.stmt) -> Parameter:
    match line:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            type_name = ast.unparse(annotation)
            if type_name in parameters.TYPES:
                with contextlib.suppress(ValueError):
                    return Parameter(name, type_name, ast.literal_eval(value))
    raise RunError(
        f"{notebook.name}, parameters cell: {ast.unparse(line)!r}; "
        f"expected 'name: type = literal' with a type of {', '.join(parameters.TYPES)}"
    )


def find_chapters() -> list[Chapter]:
    """The notebooks `NN_name.ipynb` in the order of their numbers."""
    return [Chapter(path, read_parameters(path)) for path in sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb"))]


def select_chapters(chapters: Sequence[Chapter], *, only: Sequence[str] = (), from_: str | None = None) -> list[Chapter]:
    """The chapters named by number or name; all when nothing is named.

    Raises:
        RunError: no such chapter, or both `only` and `from_`.
    """
    if only and from_:
        raise RunError(f"--only {' '.join(only)} and --from {from_} exclude each other; give one")
    known = {key: chapter for chapter in chapters for key in (chapter.number, chapter.name)}
    for wanted in (*only, *([from_] if from_ else [])):
        if wanted not in known:
            raise RunError(f"no chapter {wanted!r}; there are {', '.join(chapter.name for chapter in chapters)}")
    if from_:
        return [chapter for chapter in chapters if chapter.number >= known[from_].number]
    wanted_names = {known[wanted].name for wanted in only}
    return [chapter for chapter in chapters if chapter.name in wanted_names or not only]


def load_parameters_file(name_or_path: str) -> tuple[Path, dict[str, Any]]:
    """Path and content of `notebooks/parameters/<name>.yaml`, or of the file at a path.

    Raises:
        RunError: no such file, or it is not a mapping of parameter names to values.
    """
    folder = notebooks_dir() / "parameters"
    try:
        named = folder / f"{name_or_path}.yaml"
        path = named if named.is_file() else Path(name_or_path)
        content = read_yaml(path)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        expected = f"give one of {names}, or the path of a YAML file"
        raise RunError(f"no parameters {name_or_path!r}; {expected} ({error.strerror})") from None
    except ValueError as error:
        raise RunError(str(error)) from None
    if content is None:
        content = {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RunError(f"{path}: expected lines 'name: value', got {type(content).__name__}")
    return path, content


def resolve_parameters(
    chapters: Sequence[Chapter], selected: Sequence[Chapter], from_file: Mapping[str, Any], from_command: Sequence[str]
) -> dict[str, Any]:
    """Parameter name -> value, all names and types checked.

    Args:
        chapters: the whole book; `from_file` may speak to all of it.
        selected: the chapters that run; a command-line parameter must reach one of them.
        from_file: parameter name -> value, of a parameters file or an earlier run.
        from_command: `"name=value"`, which win over the file.

    Raises:
        RunError: an unknown name (naming the closest known one), a wrong type, or a name that no selected chapter takes.
    """
    declared = {name: parameter for chapter in chapters for name, parameter in chapter.parameters.items() if name != "run_name"}

    def known(name: str) -> Parameter:
        if name == "run_name":
            raise RunError("parameter 'run_name' is set by --run NAME")
        if name not in declared:
            hint = nearest(name, declared) or f"; known: {', '.join(sorted(declared))}"
            raise RunError(f"unknown parameter {name!r}{hint}")
        return declared[name]

    values = {name: known(name).validate(value) for name, value in from_file.items()}
    for assignment in from_command:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise RunError(f"-p {assignment}: expected name=value")
        values[name] = known(name).parse(text)
        if not any(name in chapter.parameters for chapter in selected):
            owners = ", ".join(chapter.name for chapter in chapters if name in chapter.parameters)
            raise RunError(
                f"parameter {name!r} belongs to {owners}, which this command does not run; add --only, or leave it out"
            )
    return values
