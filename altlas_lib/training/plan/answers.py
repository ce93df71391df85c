"""Answers of the compiler that are there at once: those that ship with the library, and those that this machine made."""

import ast
import contextlib
import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ...paths import outputs_dir, write_atomically
from .request import XLA_FLAGS, StepCost, StepRequest

SHIPPED_FILE = Path(__file__).with_name("shipped.json")
REDO = "python -m altlas_lib.training.plan"

# What decides what is compiled, beside the request: comments and docstrings aside.
_SOURCES = (
    *("model/accumulation", "model/config", "model/losses", "model/multi_scale", "model/recompute"),
    "plan/step",
)
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
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f'{{{head},\n"steps": {{\n{steps}\n}}}}\n')


def read_answers(file: Path, *, of_any_version: bool = False) -> Answers:
    """Those of a file; none where it is gone or damaged, or of a step that has changed since, or of other versions."""
    here = Answers(versions=package_versions(), sources=source_digest())
    try:
        found = Answers.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return here
    return found if found.sources == here.sources and (of_any_version or found.versions == here.versions) else here


@functools.cache
def _read_shipped() -> Answers:
    return read_answers(SHIPPED_FILE, of_any_version=True)


def find_answer(request: StepRequest) -> tuple[StepCost | None, str | None]:
    """What is known of a step, and a note where other versions than those that are here compiled it."""
    key, shipped, versions = request_key(request), _read_shipped(), package_versions()
    if cost := read_answers(_own_file()).steps.get(key):
        return cost, None
    other = [
        f"{name} {made} (here {versions[name]})" for name, made in shipped.versions.items() if versions.get(name, made) != made
    ]
    return shipped.steps.get(key), f"compiled with {', '.join(other)}; again with yours: {REDO}" if other else None


def keep_answer(request: StepRequest, cost: StepCost) -> str | None:
    """Keep it under `outputs/.cache`; a note where that fails, which costs the next time only."""
    answers = read_answers(_own_file())
    answers.steps[request_key(request)] = cost
    try:
        answers.save(_own_file())
    except OSError as error:
        return f"the answer could not be kept for the next time ({error})"
    return None


def _own_file() -> Path:
    return outputs_dir() / ".cache" / "plans.json"


@functools.cache
def source_digest() -> str:
    """SHA-256 of the code that builds a step, without comments and docstrings."""
    digest = hashlib.sha256(XLA_FLAGS.encode())
    for source in _SOURCES:
        tree = ast.parse((Path(__file__).parents[1] / f"{source}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                is_text = [isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in body]
                node.body = [each for each, text in zip(body, is_text, strict=True) if not text] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """The installed packages that compile, and their versions."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def request_key(request: StepRequest) -> str:
    """A hash of a request for a configuration: of whose step and for which GPU it is."""
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:32]
