"""Sales in pandas: a summary, and a rule applied row by row."""

import numpy as np
import pandas as pd


def group_summary_input(n: int = 3_000_000) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "store": rng.integers(0, 300, n),
            "article": rng.integers(0, 2000, n),
            "amount": rng.gamma(2.0, 10.0, n),
            "quantity": rng.integers(1, 9, n),
        }
    )


def group_summary(sales: pd.DataFrame) -> pd.DataFrame:
    by_store = sales.groupby(["store", "article"]).agg(
        amount=("amount", "sum"), mean=("amount", "mean"), largest=("quantity", "max"), n=("quantity", "count")
    )
    return by_store[by_store["n"] > 2].sort_values("amount", ascending=False)


def row_rule_input(n: int = 40_000) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    return pd.DataFrame({"price": rng.gamma(2.0, 10.0, n), "quantity": rng.integers(1, 9, n), "member": rng.random(n) < 0.3})


def row_rule(sales: pd.DataFrame) -> pd.Series:
    return sales.apply(discount, axis=1)


def discount(row: pd.Series) -> float:
    amount = row["price"] * row["quantity"]
    if row["member"] and amount > 50:
        return 0.1 * amount
    return 0.05 * amount if row["quantity"] >= 5 else 0.0


def rolling_sensors_input(n: int = 1_000_000) -> pd.DataFrame:
    """Readings of eight sensors, one a second."""
    rng = np.random.default_rng(3)
    return pd.DataFrame(rng.standard_normal((n, 8)).cumsum(axis=0), columns=[f"sensor {i}" for i in range(8)])


def rolling_sensors(readings: pd.DataFrame) -> pd.Series:
    """How often each sensor left the band of two standard deviations around its last five minutes' mean."""
    window = readings.rolling(300)
    return ((readings - window.mean()).abs() > 2 * window.std()).sum()


def ticket_fields_input(n: int = 250_000) -> pd.Series:
    rng = np.random.default_rng(4)
    return pd.Series([f"ticket {i} from shop-{shop} about order {order}" for i, shop, order in
                      zip(range(n), rng.integers(0, 500, n), rng.integers(0, 10**6, n), strict=True)])  # fmt: skip


def ticket_fields(tickets: pd.Series) -> pd.Series:
    """Tickets by shop."""
    return tickets.str.extract(r"from shop-(\d+)")[0].value_counts()
