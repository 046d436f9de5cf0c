"""100,000 spoiled messages through the decoder: a message comes out, or our error."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.messages import mutate, valid_messages
from sf_contract.errors import MAX_SHOWN, MalformedMessage
from sf_contract.frames import Envelope, decode, encode
from sf_contract.limits import MIB
from sf_contract.messages import AnyMessage

MESSAGES = 100_000
SEED = 20261124


def judged(frames: list[bytes]) -> Envelope | None:
    """What the decoder makes of frames; a message comes back from its own frames."""
    try:
        found = decode(frames)
    except MalformedMessage as problem:
        assert len(problem.what) <= MAX_SHOWN + 3
        assert problem.one_line().isprintable()
        return None
    again = decode([bytes(frame) for frame in encode(found.message, found.buffers)])
    assert again.message == found.message
    assert [buffer.tobytes() for buffer in again.buffers] == [buffer.tobytes() for buffer in found.buffers]
    return found


def test_valid_messages_are_accepted() -> None:
    assert all(judged(frames) is not None for frames in valid_messages())


@pytest.mark.slow
def test_spoiled_messages_give_a_message_or_our_error() -> None:
    chance = random.Random(SEED)
    starts = valid_messages()
    outcomes: Counter[str] = Counter()
    for _ in range(MESSAGES):
        found = judged(mutate(chance.choice(starts), chance))
        outcomes["refused" if found is None else type(found.message).__name__] += 1
    assert outcomes.total() == MESSAGES
    assert 0.5 < outcomes["refused"] / MESSAGES < 0.95, outcomes
    assert set(outcomes) == {"refused", *(kind.__name__ for kind in AnyMessage.__args__)}, (
        "some type never came through"
    )


def test_spoiled_messages_need_no_more_memory_than_their_own() -> None:
    chance = random.Random(SEED + 1)
    starts = valid_messages()
    spoiled = [mutate(chance.choice(starts), chance) for _ in range(2_000)]
    tracemalloc.start()
    for frames in spoiled:
        judged(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


@settings(max_examples=500, deadline=None)
@given(start=st.integers(0, len(valid_messages()) - 1), seed=st.integers(0, 2**32))
def test_the_same_with_a_search_for_the_smallest_example(start: int, seed: int) -> None:
    judged(mutate(valid_messages()[start], random.Random(seed)))


@settings(max_examples=500, deadline=None)
@given(frames=st.lists(st.binary(max_size=60), max_size=7), keeps_magic=st.booleans())
def test_random_frames_give_a_message_or_our_error(frames: list[bytes], keeps_magic: bool) -> None:
    judged([b"SFZ\x01", *frames] if keeps_magic else frames)
