"""A lazy query of Polars over events and users."""

import numpy as np
import polars as pl


def lazy_query_input(n: int = 20_000_000) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(1)
    events = pl.DataFrame(
        {"user": rng.integers(0, 200_000, n), "kind": rng.integers(0, 20, n), "seconds": rng.exponential(30.0, n)}
    )
    return events, pl.DataFrame({"user": np.arange(200_000), "country": rng.integers(0, 60, 200_000)})


def lazy_query(data: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    events, users = data
    return time_by_country(events.lazy(), users.lazy()).collect()


def time_by_country(events: pl.LazyFrame, users: pl.LazyFrame) -> pl.LazyFrame:
    return (
        events.filter(pl.col("seconds") > 5)
        .join(users, on="user")
        .group_by("country", "kind")
        .agg(pl.col("seconds").sum(), pl.col("seconds").mean().alias("mean"), pl.len().alias("n"))
        .sort("country", "kind")
    )


def scored_events_input(n: int = 600_000) -> pl.DataFrame:
    return pl.DataFrame({"seconds": np.random.default_rng(2).exponential(30.0, n)})


def scored_events(events: pl.DataFrame) -> float:
    return events["seconds"].map_elements(score, return_dtype=pl.Float64).sum()


def score(seconds: float) -> float:
    """Of a visit: nothing below five seconds, and at most 60."""
    if seconds < 5:
        return 0.0
    return min(seconds, 60.0) ** 0.5
