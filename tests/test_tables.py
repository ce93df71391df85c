"""Tables of notebooks show data as text, whatever it looks like."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from altlas_lib import tables


class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(html[html.index("<table") :])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.tags[-1] == "td":
            self.cells[-1] += data


@given(st.text())
def test_text_from_data_stays_text(text):
    shown = Cells(tables.show([(text, 1.5)], ["text", "number"], formats={"number": "{:.2f}"}).to_html())
    assert set(shown.tags) == {"table", "thead", "tr", "th", "tbody", "td"}
    assert shown.cells[1].strip() == "1.50"


def test_markup_is_shown_and_not_obeyed():
    html = tables.show([("<script>alert(1)</script>",)], ["$x$"]).to_html()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "tex2jax_ignore" in html


def test_numbers_stand_on_the_right_and_what_is_missing_is_said():
    html = tables.show([("a", 1.0), ("b", None)], ["name", "time"], missing="not measured").to_html()
    assert ".col0 {\n  text-align: left" in html
    assert ".col1 {\n  text-align: right" in html
    assert "not measured" in html


def test_whole_numbers_stay_whole_beside_a_missing_one_and_columns_are_named_in_words():
    shown = Cells(tables.show([("a", 512), ("b", None)], ["name", "n_samples"], missing="-").to_html())
    assert [cell.strip() for cell in shown.cells] == ["a", "512", "b", "-"]
    assert ">n samples<" in tables.show([(1,)], ["n_samples"]).to_html()


def test_a_folded_table_shows_its_line_which_is_text_too():
    html = tables.show([("a",)], ["name"], folded="<b>3 packages").to_html()
    assert html.startswith("<details><summary>&lt;b&gt;3 packages</summary>")
    assert "<table" in html


def test_an_empty_table_is_a_table():
    assert "<table" in tables.show([], ["name"]).to_html()


# In a terminal ----------------------------------------------------------------------------------------------------------


ROWS = [{"name": "first", "time": 1.25, "note": None}, {"name": "second", "time": None, "note": "n" * 300}]


def test_a_terminal_gets_the_same_formats_and_words_for_what_is_missing():
    lines = tables.show(ROWS, formats={"time": "{:.1f} s"}, missing="not seen").text(60, title="two rows").splitlines()
    assert lines[0] == "two rows"
    assert lines[1].split() == ["name", "time", "note"]
    assert lines[3].split() == ["first", "1.2", "s", "not", "seen"]
    assert lines[4].split()[:3] == ["second", "not", "seen"]
    uncut = "".join(line[20:].strip() for line in lines[4:])  # the last column, which goes on in the next lines
    assert uncut.endswith("n" * 300)


def test_only_the_columns_that_are_asked_for_are_shown():
    assert tables.show(ROWS).text(60, columns=["time"]).split() == ["time", "─" * 4, "1.25"]
    assert tables.show([]).text(60) == ""


@given(st.text(), st.integers(20, 120))
def test_text_from_data_neither_steers_a_terminal_nor_widens_a_line(text, width):
    shown = tables.show([{"text": text, "number": 7}]).text(width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_what_looks_like_rich_markup_is_text():
    assert "[red]no colour[/red]" in tables.show([{"text": "[red]no colour[/red]"}]).text(80)


def test_a_narrow_terminal_wraps_titles_and_texts_and_crops_neither():
    row = {"function": "cosine", "where": "a_module_of_mine.py:12", "calls": 1, "own (ms)": 8.9, "cumulative (ms)": 12.25}
    row |= {"own, py-spy": 0.889, "what ran": "arrays 94%, interpreter 6%"}
    lines = tables.show([row]).text(80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    for column, value in row.items():
        at = [line.find(str(value)[:4]) for line in lines]
        assert max(at) >= 0, (column, lines)
    last = [line[max(line.find("arrays") for line in lines) :] for line in lines]
    assert "arrays 94%, interpreter 6%" in " ".join(part.strip() for part in last)
