"""The marks of an epoch are a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sf_server.training.marks import Marks

SEQS = st.lists(st.integers(1, 5000), unique=True, max_size=60)


@given(SEQS, SEQS)
def test_marks_are_a_set_that_can_be_written_down(first, others):
    marks = Marks()
    assert marks.add(first) is None
    again = Marks(marks.bits())
    new = [seq for seq in others if seq not in set(first)]
    assert again.add(new) is None
    everything = {*first, *new}
    assert len(again) == len(everything)
    assert all((seq in again) == (seq in everything) for seq in range(1, 5100))


@given(SEQS.filter(bool), st.randoms())
def test_a_sample_that_is_marked_already_is_named(seqs, random):
    marks = Marks()
    marks.add(seqs)
    twice = random.choice(seqs)
    assert marks.add([5001, twice]) == twice


def test_a_million_samples_are_125_kilobytes():
    marks = Marks()
    marks.add([1_000_000])
    assert len(marks.bits()) <= 125_001
