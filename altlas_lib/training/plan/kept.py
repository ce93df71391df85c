"""Answers of the compiler that are there at once: those that ship with the library, and those that this machine made."""

import ast
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


class Shipped(BaseModel):
    """The compiled steps of the presets, by the key of their request.

    Attributes:
        versions: of the packages that compiled them.
        sources: `source_digest` of the library that they are steps of.
    """

    versions: dict[str, str] = {}
    sources: str = ""
    steps: dict[str, StepCost] = {}

    def save(self, file: Path = SHIPPED_FILE) -> None:
        """One line for each step, in the order in which they were made."""
        steps = ",\n".join(f'"{key}": {cost.model_dump_json(exclude_defaults=True)}' for key, cost in self.steps.items())
        head = f'"versions": {json.dumps(self.versions)},\n"sources": "{self.sources}"'
        write_atomically(file, f'{{{head},\n"steps": {{\n{steps}\n}}}}\n')


@functools.cache
def shipped() -> Shipped:
    """What ships with this version of the library; nothing where the file is gone, or of steps that have changed since."""
    try:
        found = Shipped.model_validate_json(SHIPPED_FILE.read_bytes())
    except (OSError, ValidationError):
        return Shipped()
    return found if found.sources == source_digest() else Shipped()


def stale_note(found: Shipped) -> str | None:
    """What to say where other versions compiled what ships; None where those that are installed did, or none is."""
    here = package_versions()
    other = [f"{name} {made} (here {here[name]})" for name, made in found.versions.items() if here.get(name, made) != made]
    return f"compiled with {', '.join(other)}; again with yours: {REDO}" if other else None


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
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def request_key(request: StepRequest) -> str:
    """A hash of a request for a configuration: of whose step and for which GPU it is."""
    return hashlib.sha256(request.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:32]


class Cache:
    """Answers under `outputs/.cache/plans`, by all that decides them: request, model, packages, this library's step."""

    def __init__(self, request: StepRequest, identity: tuple[str, ...]):
        parts = [request.model_dump_json(exclude={"keras_file"}, exclude_defaults=True), *identity]
        parts += [json.dumps(package_versions()), source_digest()]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.file = outputs_dir() / ".cache" / "plans" / f"{key}.json"

    def read(self) -> StepCost | None:
        """The answer; None: not there, damaged, or a source of the model's has changed or is gone."""
        try:
            kept = StepCost.model_validate_json(self.file.read_bytes())
            unchanged = (
                hashlib.sha256(Path(source).read_bytes()).hexdigest() == digest for source, digest in kept.sources.items()
            )
            return kept if all(unchanged) else None
        except (OSError, ValidationError):
            return None

    def write(self, cost: StepCost) -> list[str]:
        """Keep an answer; a note where that fails, which costs the next time only."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, cost.model_dump_json(exclude_defaults=True))
        except OSError as error:
            return [f"the answer could not be kept for the next time ({error})"]
        return []
