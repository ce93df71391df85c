"""Answers of the compiler that are there at once: those that ship with the library."""

import ast
import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ...paths import write_atomically
from .request import XLA_FLAGS, StepCost, StepRequest

SHIPPED_FILE = Path(__file__).with_name("shipped.json")
REDO = "python -m altlas_lib.training.plan"

# What decides what is compiled, beside the request: comments and docstrings aside.
_SOURCES = ("model/accumulation", "model/config", "model/losses", "model/multi_scale", "model/recompute", "plan/step")
_PACKAGES = ("jax", "jaxlib", "keras", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")


class Answers(BaseModel):
    """Compiled steps of configurations, by the key of their request.

    Attributes:
        versions: of the packages that compiled them.
        sources: `source_digest` of the library that they are steps of.
    """

    versions: dict[str, str] = {}
    sources: str = ""
    steps: dict[str, StepCost] = {}

    def save(self, file: Path) -> None:
        """One line for each step, in the order in which they were made."""
        steps = ",\n".join(f'"{key}": {cost.model_dump_json(exclude_defaults=True)}' for key, cost in self.steps.items())
        head = f'"versions": {json.dumps(self.versions)},\n"sources": "{self.sources}"'
        write_atomically(file, f'{{{head},\n"steps": {{\n{steps}\n}}}}\n')


@functools.cache
def read_shipped() -> Answers:
    """What ships, by whatever versions; nothing where it is gone or damaged, or of a step that has changed since."""
    try:
        found = Answers.model_validate_json(SHIPPED_FILE.read_bytes())
    except (OSError, ValidationError):
        found = Answers()
    return found if found.sources == source_digest() else begin_anew()


def begin_anew() -> Answers:
    """No answers yet, of this library and of the versions that are here."""
    return Answers(versions=package_versions(), sources=source_digest())


def find_answer(request: StepRequest) -> tuple[StepCost | None, list[str]]:
    """What is known of a step, and a note where other versions than those that are here compiled it."""
    shipped, here = read_shipped(), package_versions()
    other = [f"{name} {made} (here {here[name]})" for name, made in shipped.versions.items() if here.get(name, made) != made]
    notes = [f"compiled with {', '.join(other)}; again with yours: {REDO}"] if other else []
    return shipped.steps.get(request_key(request)), notes


class _DropDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@functools.cache
def source_digest() -> str:
    """SHA-256 of the code that builds a step, without comments and docstrings."""
    digest = hashlib.sha256(XLA_FLAGS.encode())
    for source in _SOURCES:
        tree = ast.parse((Path(__file__).parents[1] / f"{source}.py").read_text(encoding="utf-8"))
        digest.update(ast.unparse(_DropDocstrings().visit(tree)).encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """The installed packages that compile, and their versions."""
    return {name: found.version for name in _PACKAGES for found in metadata.distributions(name=name)}


def request_key(request: StepRequest) -> str:
    """A hash of a request for a configuration: of whose step and for which GPU it is."""
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:32]
