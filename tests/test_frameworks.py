"""What works with which framework: the table of chapter 00 and of the documentation says what the tests show."""

import ast
from pathlib import Path

from altlas_lib import environment, paths

ROOT = Path(__file__).parents[1]
ROWS = paths.shipped_toml("altlas_lib.environment", "frameworks.toml")["row"]


def shown_by_tests():
    """Pairs of the first word of a row and a framework, by the markers of all tests."""
    found = set()
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", ()):
                if ast.unparse(call).startswith("pytest.mark.frameworks("):
                    what, *names = map(ast.literal_eval, call.args)
                    found |= {(what, name) for name in names}
    return found


def test_what_is_called_tested_is_what_a_test_is_marked_with():
    cells = {(row["what"].partition(":")[0], name) for row in ROWS for name, said in row.items() if said == "tested"}
    assert cells == shown_by_tests()


def test_the_documentation_has_the_same_table():
    columns = list(ROWS[0])
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in ROWS)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    assert table in (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")


def test_chapter_00_shows_it():
    shown = environment.framework_table().text(160)
    assert all(row["what"] in shown for row in ROWS)
