"""Fields of a log by a regular expression that backtracks."""

from collections import Counter

import regex

ENTRY = regex.compile(r"(.*) (.*) \[(.*)\] (.*): (.*) user=(.*) took=(.*)ms")


def slow_pattern_input(n: int = 30_000) -> list[str]:
    return [
        f"2024-03-{i % 28 + 1:02} 12:{i % 60:02}:00 [worker {i % 9}] service.{i % 5}: answered a question of some length about "
        f"the {i % 31}th article of the list user=u{i * 7919 % 97} took={i * 31 % 800}ms and then went on with the next one"
        for i in range(n)
    ]


def slow_pattern(lines: list[str]) -> Counter:
    total: Counter = Counter()
    for line in lines:
        user, milliseconds = fields(line)
        total[user] += milliseconds
    return total


def fields(line: str) -> tuple[str, int]:
    *_, user, took = ENTRY.match(line).groups()
    return user, int(took)
