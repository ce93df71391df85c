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


def test_an_empty_table_is_a_table():
    assert "<table" in tables.show([], ["name"]).to_html()
