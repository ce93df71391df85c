"""What makes a go and what it costs, as data: `rules.yaml`, and what a user's own file or parameters change in it."""

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationError, field_validator

from .. import reading
from ..devices import GpuSpec, find_gpu, load_catalogue
from ..results import Model, first_problem


def read_yaml(name: str) -> Any:
    """A data file of this package."""
    return yaml.safe_load(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


class PortRule(Model):
    least_workload_gain: PositiveFloat


class IntegrateRule(Model):
    least_gain: PositiveFloat
    least_runs: int = Field(ge=1)


class FitRule(Model):
    accepted_verdicts: list[Literal["fits", "tight"]] = Field(min_length=1)


class PredictRule(Model):
    least_gain: float = Field(ge=0, lt=1)
    least_seeds: int = Field(ge=1)
    stand_in_presets: list[str]


class ProduceRule(Model):
    least_gain: PositiveFloat
    largest_loss: float = Field(ge=0, lt=1)


class Money(Model):
    """What running costs; `given` names what the user said, the rest are examples; `gpus` are set side by side."""

    currency: str
    price_source: str
    price_per_hour: dict[str, NonNegativeFloat]
    runs_per_day: NonNegativeFloat
    person_days: NonNegativeFloat
    price_per_person_day: NonNegativeFloat
    price_per_kwh: NonNegativeFloat
    cpu_power_w: NonNegativeFloat
    gpus: list[GpuSpec]
    given: frozenset[str] = frozenset()

    @field_validator("gpus", mode="before")
    @classmethod
    def _find(cls, names: list[str]) -> list[GpuSpec]:
        wanted = [find_gpu(name) for name in names]
        return [gpu for gpu in load_catalogue() if gpu in wanted or not wanted]

    @property
    def examples(self) -> list[str]:
        """What is still an example of this book's and not the user's own."""
        return sorted(type(self).model_fields.keys() - self.given - {"given", "gpus", "price_source"})


class Rules(Model):
    """`rules.yaml`, read and checked."""

    port: PortRule
    integrate: IntegrateRule
    fit: FitRule
    predict: PredictRule
    produce: ProduceRule
    money: Money
    minutes: dict[str, float]

    @classmethod
    def load(cls, path: str | Path | None = None, **money: Any) -> "Rules":
        """The project's rules, with those lines changed that the file at `path` has, then those of `money`.

        Args:
            **money: fields of `Money`; `price_per_hour` may be `["T4=0.5", "CPU=0.1"]`. What is empty or 0 is not given.

        Raises:
            ValueError: the file cannot be read, or has a rule or value that does not exist; names it.
        """
        rules, origin = read_yaml("rules.yaml"), f"rules {path}" if path else "prices"
        examples = rules["money"]["price_per_hour"]
        try:
            changes = (reading.read_yaml(path) or {}) if path else {}
            given = [changes.get("money") or {}, {name: value for name, value in money.items() if value}]
            prices = {name: price for each in given for name, price in _prices(each.get("price_per_hour", {})).items()}
            for question, change in changes.items():
                rules[question] = {**rules.get(question, {}), **change}
            rules["money"] |= given[1] | {"price_per_hour": examples | prices}
            rules["money"]["given"] = {*given[0], *given[1], *prices}
            return cls.model_validate(rules)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else f"cannot be read ({error})"
            raise ValueError(f"{origin}: {reason}; expected lines as in altlas_lib/report/rules.yaml") from None


def _prices(given: Any) -> dict[str, Any]:
    pairs = [each.partition("=")[::2] for each in given] if isinstance(given, list) else given.items()
    return {name if name == "CPU" else find_gpu(name).name: price for name, price in pairs}
