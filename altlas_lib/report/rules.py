"""What makes a go, as data: `rules.yaml`, and what a user's own file changes in it."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Gain = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def read_yaml(name: str) -> Any:
    """A data file of this package."""
    return yaml.safe_load(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


class Checked(BaseModel):
    """A part of a data file, all of whose names are known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PortRule(Checked):
    least_workload_gain: _Gain


class IntegrateRule(Checked):
    least_gain: _Gain
    least_runs: int = Field(ge=1)


class FitRule(Checked):
    accepted_verdicts: list[Literal["fits", "tight"]] = Field(min_length=1)


class PredictRule(Checked):
    least_gain: float = Field(ge=0, lt=1)
    least_seeds: int = Field(ge=1)
    stand_in_presets: list[str]


class Rules(Checked):
    """`rules.yaml`, read and checked."""

    port: PortRule
    integrate: IntegrateRule
    fit: FitRule
    predict: PredictRule

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Rules":
        """The project's rules, with those lines changed that the file at `path` has.

        Raises:
            ValueError: the file cannot be read, or has a rule or value that does not exist; names it.
        """
        rules = read_yaml("rules.yaml")
        if not path:
            return cls.model_validate(rules)
        try:
            changes = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            for question, change in changes.items():
                rules[question] = {**rules.get(question, {}), **change}
            return cls.model_validate(rules)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"rules {path}: {where}: {first['msg']}; see altlas_lib/report/rules.yaml") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(
                f"rules {path} cannot be read ({error}); expected lines as in altlas_lib/report/rules.yaml"
            ) from None
