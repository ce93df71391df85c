"""The book as the runner sees it: its chapters, the parameters that each declares, and the values that they get."""

import ast
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .names import nearest
from .paths import notebooks_dir

_TYPES = {kind.__name__: kind for kind in (int, float, str, bool)}
_TYPES |= {str(kind): kind for kind in (list[int], list[float], list[str])}


class RunError(Exception):
    """The run cannot start or did not finish; the message says what to do."""


@dataclass(frozen=True)
class Parameter:
    """A line of a notebook's parameters cell: `n_texts: int = 1000  # texts to embed`."""

    name: str
    type_name: str
    default: Any

    @property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(_TYPES[self.type_name], config=ConfigDict(allow_inf_nan=False))

    def validate(self, value: Any) -> Any:
        """`value` where it has the parameter's type (an int may stand for a float, nothing else is converted).

        Raises:
            RunError: it has another type.
        """
        try:
            return self._adapter.validate_python(value, strict=True)
        except ValidationError:
            raise RunError(f"parameter {self.name}={value!r}: expected {self.type_name}, such as {self.default!r}") from None

    def parse(self, text: str) -> Any:
        """The value that `-p name=text` means: a list is written as JSON, `-p sizes=[100,1000]`."""
        try:
            return (
                self._adapter.validate_json(text) if self.type_name.startswith("list") else self._adapter.validate_strings(text)
            )
        except ValidationError:
            raise RunError(f"parameter {self.name}={text}: expected {self.type_name}, such as {self.default!r}") from None


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
            if type_name in _TYPES:
                with contextlib.suppress(ValueError):
                    return Parameter(name, type_name, ast.literal_eval(value))
    raise RunError(
        f"{notebook.name}, parameters cell: {ast.unparse(line)!r}; "
        f"expected 'name: type = literal' with a type of {', '.join(_TYPES)}"
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
    named = folder / f"{name_or_path}.yaml"
    path = named if named.is_file() else Path(name_or_path).resolve()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise RunError(f"no parameters {name_or_path!r}; give one of {names}, or the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not YAML: {error}") from None
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
