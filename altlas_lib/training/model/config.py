"""The sizes of the multi-scale model, its presets, and the two lighter ones that the specification proposes."""

from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from ...names import nearest
from ...paths import shipped_toml
from ...results import Model

FEATURE_WINDOWS = (5, 10, 20, 30, 50, 75, 100, 200, 300, 500, 1000)
N_FEATURES = 11 * len(FEATURE_WINDOWS)

# What the model answers, by the names of its outputs.
REGRESSION, CLASSIFICATION, THRESHOLD_HEAD = HEADS = ("regression", "classification", "threshold")


class NBeatsConfig(Model):
    window: PositiveInt
    units: PositiveInt
    n_blocks: PositiveInt


class TcnConfig(Model):
    """One residual block per width in `filters` and dilation; each sees 2 (kernel_size - 1) dilation values further back."""

    window: PositiveInt
    filters: tuple[PositiveInt, ...]
    kernel_size: PositiveInt = 3
    dilations: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)


class TransformerConfig(Model):
    window: PositiveInt
    d_model: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    feed_forward: PositiveInt

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(f"transformer-layer{i}" for i in range(1, self.n_layers + 1))

    @model_validator(mode="after")
    def _heads_share_the_model_width(self) -> Self:
        if self.d_model % 2 or self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model}: expected an even multiple of n_heads ({self.n_heads})")
        return self


class ModelConfig(Model):
    """The sizes of the model. `window` values in each part are past values of the series that it looks at.

    The last two switches save memory and change no result: weights, their names and the function are the same without.
    """

    nbeats: tuple[NBeatsConfig, ...] = ()
    tcn: TcnConfig | None = None
    transformer: TransformerConfig | None = None
    fusion: tuple[PositiveInt, ...] = (512, 256)
    dropout: NonNegativeFloat = Field(default=0.2, lt=1)
    recompute: bool = Field(default=False, description="keep only the inputs of the Transformer's layers for the backward pass")
    memory_efficient_attention: bool = Field(default=False, description="hold the attention scores of an eighth at a time")

    @property
    def parts(self) -> tuple[NBeatsConfig | TcnConfig | TransformerConfig, ...]:
        return tuple(part for part in (*self.nbeats, self.tcn, self.transformer) if part)

    @property
    def recomputed_layers(self) -> tuple[str, ...]:
        """What `fit` is to recompute."""
        return self.transformer.layer_names if self.transformer and self.recompute else ()

    @property
    def window(self) -> int:
        """The longest past that a part looks at, in values: the length of the model's input."""
        return max(part.window for part in self.parts)

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not self.parts:
            raise ValueError("the model looks at nothing: give it nbeats, a tcn or a transformer")
        return self


def lighten(config: ModelConfig) -> dict[str, ModelConfig]:
    """The specification's two lighter models, by the names of the presets that are cut from the reference.

    - option1: without the longest window's stack and the Transformer.
    - option2: the Transformer at half its width, layers, heads and feed-forward width.

    Raises:
        ValueError: the model has no Transformer, or one stack only.
    """
    if not config.transformer or len(config.nbeats) < 2:
        raise ValueError("the options are cut from a model with a Transformer and two N-BEATS stacks or more: take another")
    longest = max(config.nbeats, key=lambda stack: stack.window)
    stacks = tuple(stack for stack in config.nbeats if stack != longest)
    halved = {name: max(1, size // 2) for name, size in config.transformer.model_dump(exclude={"window"}).items()}
    lighter = {"nbeats": stacks, "transformer": None}, {"transformer": config.transformer.model_copy(update=halved)}
    return {f"option{i}": config.model_copy(update=changes) for i, changes in enumerate(lighter, start=1)}


PRESETS = {name: ModelConfig(**sizes) for name, sizes in shipped_toml(__package__, "presets.toml").items()}
PRESETS |= lighten(PRESETS["reference"])


def find_preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    hint = nearest(name, PRESETS) or f"; known: {', '.join(map(repr, PRESETS))}"
    raise ValueError(f"preset {name!r} is unknown{hint}")
