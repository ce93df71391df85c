"""Write the generated samples again: `python data/regenerate.py [folder]`; the folder is this one if none is given."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from altlas_lib import data

SERIES = {"n": 5000, "regime_strength": 0.8, "seed": 1}
# What exports of real games were found to hold: two numbers in one cell with a line separator between, infinity, nothing.
DAMAGES = {17: "1.23\u20284.56", 42: float("inf"), 43: None, 77: "2.05\u20281.00"}


def main(folder: Path) -> None:
    multipliers = data.crash_series(**SERIES).values
    csv = "multiplier\n" + "".join(f"{value:.2f}\n" for value in multipliers)
    (folder / "crash_multipliers.csv").write_text(csv, encoding="utf-8", newline="\n")

    database = folder / "crash_export_damaged.sqlite"
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE rounds (id INTEGER PRIMARY KEY, multiplier REAL)")
        rows = ((number, DAMAGES.get(number, value)) for number, value in enumerate(multipliers[:2000].tolist(), 1))
        connection.executemany("INSERT INTO rounds VALUES (?, ?)", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
