"""A misspelled name gets the one that was probably meant, from a list of any size, and nothing where none is near."""

from hypothesis import given
from hypothesis import strategies as st

from altlas_lib.names import nearest


def test_the_nearest_name_is_offered_in_its_own_spelling():
    assert nearest("N_TEXT", ["sizes", "n_texts"]) == "; did you mean 'n_texts'?"
    assert nearest("dump_s", ["dumps", "dump", "load"], n=3) == "; did you mean 'dumps' or 'dump'?"


def test_nothing_is_offered_where_nothing_is_near():
    assert nearest("zzz", ["sizes", "n_texts"]) == ""
    assert nearest("x", []) == ""


@given(st.text(), st.lists(st.text()))
def test_only_known_names_are_offered(name, known):
    offered = nearest(name, known)
    assert offered == "" or any(offered == f"; did you mean {entry!r}?" for entry in known)
