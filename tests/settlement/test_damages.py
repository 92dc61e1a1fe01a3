"""Any bytes give a sentence; `python -m tests.settlement.damages` is the long run."""

from tests.settlement.damages import run


def test_of_random_damages_each_ends_in_a_sentence_or_changes_nothing_that_counts():
    ended = run(600)
    assert ended["a sentence"] > 500
