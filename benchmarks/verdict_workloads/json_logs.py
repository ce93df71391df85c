"""Lines of a log, each a JSON object, counted by user."""

import json
from collections import defaultdict


def log_lines_input(n: int = 120_000) -> list[str]:
    return [
        json.dumps(
            {"user": f"u{i * 7919 % 997}", "path": f"/shop/{i % 53}", "ms": i * 31 % 800, "tags": ["a", "b", str(i % 9)]}
        )
        for i in range(n)
    ]


def log_lines(lines: list[str]) -> dict[str, int]:
    milliseconds: dict[str, int] = defaultdict(int)
    for line in lines:
        entry = json.loads(line)
        if "8" not in entry["tags"]:
            milliseconds[entry["user"]] += entry["ms"]
    return dict(milliseconds)
