"""SIGKILL while requests are being sent."""

from benchmarks import serving_kills


def test_no_kill_loses_an_accepted_job_or_changes_an_answer(tmp_path):
    """The same with a hundred kills: python -m benchmarks.serving_kills."""
    found = serving_kills.drill(4, 1, tmp_path)
    assert found.is_clean(), found
    assert found.n_server_kills > 0
    assert found.n_worker_kills > 0
    assert found.n_accepted > 5
    assert found.n_searches > 5
