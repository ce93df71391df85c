"""A crash-game multiplier series whose true odds, and so the best score that any forecast can reach, are known.

The fair game draws u uniformly from (0, 1] and pays max(1, 0.97 / u), rounded down to two decimals: P(value >= x) = 0.97 / x
for every x > 1 of two decimals, whatever came before. Nothing can be learned from it.

A regime of strength s > 0 plants a gambler's belief that is true here: what was high for a while is low ten rounds later.
Call a value high if it is at least 1.94, the fair median. If most of the values 11 to 31 rounds back were high, the next one is
high with probability (1 - s) / 2, else with (1 + s) / 2; within the high and the low half the odds stay as they were. So a
forecast needs 31 past values and no more, and the regime never settles: each answer turns the question round, in waves of
some 40 rounds. High and low play the same part in this rule, so each value by itself keeps the fair odds exactly,
P(value >= x) = 0.97 / x at any s: no histogram shows the regime, only the order of the values does.
"""

from dataclasses import dataclass

import numpy as np

from .checks import DataError
from .series import Series, series_source

RETURN_TO_PLAYER = 0.97  # of the stake, on average, at whatever multiplier the player cashes out
LAG = 10  # values just before the next one that the regime does not look at
MEMORY = 21  # values before those that it does look at; odd, so that there is always a majority
CLASS_EDGES = (1.5, 10.0)  # below 1.5, 1.5 to 10, 10 and more


@dataclass(frozen=True, eq=False)
class CrashSeries(Series):
    """A generated series and the odds that it was drawn with.

    Attributes:
        values: (n,) float64, at least 1.00, two decimals.
        high_probability: (n,) float64, P(values[t] >= 1.94 | values[:t]); it fixes the whole conditional distribution.
    """

    high_probability: np.ndarray

    def survival(self, x: float) -> np.ndarray:
        """(n,) float64: the true P(values[t] >= x | values[:t])."""
        return _survival(np.ceil(np.round(100 * x, 6)) / 100, self.high_probability)

    @property
    def median(self) -> np.ndarray:
        """(n,) float64: the true median of values[t] given values[:t]."""
        return _multiplier(0.5, self.high_probability)

    def best_possible(self, part: slice = slice(None)) -> dict[str, float]:
        """The expected scores, over the values in `part`, of the forecast that knows the true odds; none does better.

        - `threshold_accuracy`: share of right answers to "will it be at least 1.5?"; higher is better;
        - `class_accuracy`: the same for three classes: below 1.5, 1.5 to 10, 10 and more;
        - `log_mean_absolute_error`: of a forecast of the value's natural logarithm, its conditional median; lower is better.

        At `regime_strength=0` these are the scores of the best constant answer.

        Raises:
            DataError: `part` is empty.
        """
        p = self.high_probability[part]
        if not p.size:
            raise DataError(f"part={part!r} holds none of the {len(self.values)} values: choose another part")
        low_edge, high_edge = (self.survival(edge)[part] for edge in CLASS_EDGES)
        odds, position = np.unique(p, return_inverse=True)  # two or three different ones
        return {
            "threshold_accuracy": float(np.maximum(low_edge, 1 - low_edge).mean()),
            "class_accuracy": float(np.max([1 - low_edge, low_edge - high_edge, high_edge], axis=0).mean()),
            "log_mean_absolute_error": float(np.array([*map(_log_absolute_error, odds)])[position].mean()),
        }


def crash_series(n: int, *, regime_strength: float = 0.0, seed: int = 0) -> CrashSeries:
    """`n` multipliers of the game described above; the same arguments give the same values.

    Raises:
        DataError: `n` is less than 1, `regime_strength` outside [0, 1), or `seed` negative.
    """
    if n < 1 or not 0 <= regime_strength < 1 or seed < 0:
        raise DataError(
            f"n={n!r}, regime_strength={regime_strength!r}, seed={seed!r}: expected n >= 1, 0 <= regime_strength < 1, seed >= 0"
        )
    draws = 1 - np.random.default_rng(seed).random(n)  # in (0, 1]
    odds, high = np.full(n, 0.5), np.zeros(n, bool)
    for t in range(n):
        if t >= LAG + MEMORY:
            n_high = np.count_nonzero(high[t - LAG - MEMORY : t - LAG])
            odds[t] = (1 - regime_strength if n_high > MEMORY / 2 else 1 + regime_strength) / 2
        high[t] = draws[t] <= odds[t]
    values = _multiplier(draws, odds)
    kind = "a planted, learnable regime" if regime_strength else "fair odds, in which there is nothing to learn"
    name = f"crash_series(n={n}, regime_strength={regime_strength}, seed={seed}), a generated game with {kind}"
    return CrashSeries(values, series_source(values, name), odds)


def _multiplier(draw: np.ndarray | float, p: np.ndarray) -> np.ndarray:
    """What a uniform draw from (0, 1] pays where a high value, u <= 1/2, has probability p: the inverse of `_survival`."""
    u = np.where(draw <= p, draw / (2 * p), 0.5 + (draw - p) / (2 * (1 - p)))
    return np.maximum(100, np.floor(100 * RETURN_TO_PLAYER / u)) / 100


def _survival(x: np.ndarray | float, p: np.ndarray | float) -> np.ndarray:
    """P(value >= x) for x of two decimals where a high value has probability p: piecewise linear in the fair odds 0.97 / x."""
    fair = np.where(np.asarray(x) > 1, RETURN_TO_PLAYER / np.maximum(x, 1), 1.0)
    return np.where(fair <= 0.5, 2 * p * fair, p + (1 - p) * (2 * fair - 1))


def _log_absolute_error(p: float) -> float:
    """E|log value - median|, which is the integral of min(F, 1 - F) over the logarithm, F the distribution function."""
    x = np.arange(100, 1_000_001) / 100
    above = _survival(x[1:], p)  # 1 - F between x[i] and x[i + 1]
    beyond = float(_survival(x[-1], p))  # from 10,000 on 1 - F falls as exp(-log x), rounding is of no account
    return float(np.minimum(above, 1 - above) @ np.diff(np.log(x))) + beyond
