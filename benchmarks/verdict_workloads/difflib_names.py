"""Names that are nearly the same, with difflib of the standard library."""

import difflib
import itertools
import random


def similar_names_input(n: int = 110) -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.choices("abcdefghij ", k=24)) for _ in range(n)]


def similar_names(names: list[str]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in itertools.combinations(range(len(names)), 2) if likeness(names[i], names[j]) > 0.6]


def likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
