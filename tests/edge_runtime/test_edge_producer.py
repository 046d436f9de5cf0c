"""From a row to a sample."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from sf_contract.activations import NO_TARGET
from sf_contract.bundle import Bundle
from sf_contract.codec import decode_rows, relative_row_errors
from sf_contract.errors import SelfTestFailed, UsageError
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.messages import Role
from sf_contract.records import BadRow, Row
from sf_contract.tokenizer import open_tokenizer
from sf_edge.producer import (
    NotFinite,
    Produced,
    Producer,
    RolePolicy,
    Unusable,
    largest_sample_bytes,
    longest_sample_tokens,
)


def make_producer(bundle: Bundle, *, max_tokens: int = 16, policy: RolePolicy | None = None) -> Producer:
    return Producer(
        spec=bundle.manifest.task,
        tokenizer=open_tokenizer(bundle),
        front_end=open_front_end(bundle),
        max_tokens=max_tokens,
        policy=policy or RolePolicy(),
    )


def test_a_row_becomes_a_sample_with_the_rows_of_its_tokens(bundle: Bundle, embeddings) -> None:
    made = make_producer(bundle).produce(Row(1, {"text": "turn the lights on", "label": "lights"}), ordinal=7)
    assert isinstance(made, Produced)
    assert (made.sample.ordinal, made.sample.label, made.sample.role) == (7, 0, Role.TRAIN)
    assert not made.was_cut
    rows = decode_rows(made.sample.rows)
    assert relative_row_errors(rows, embeddings[[1, 3, 4, 6]]).max() < 0.02
    assert made.sample.nbytes <= largest_sample_bytes(bundle.manifest, 4)


def test_a_long_text_is_cut_and_said_to_be(bundle: Bundle) -> None:
    made = make_producer(bundle, max_tokens=3).produce(
        Row(1, {"text": "turn the lights on", "label": "music"}), ordinal=0
    )
    assert isinstance(made, Produced)
    assert made.was_cut
    assert made.sample.rows.tokens == 3


def test_a_completion_row_carries_its_targets(completion_bundle: Bundle) -> None:
    row = Row(1, {"prompt": "turn the", "completion": "lights on"})
    made = make_producer(completion_bundle).produce(row, ordinal=0)
    assert isinstance(made, Produced)
    assert made.sample.label is None
    assert made.sample.targets is not None
    assert made.sample.targets.tolist() == [NO_TARGET, 4, 6]
    assert made.sample.nbytes == largest_sample_bytes(completion_bundle.manifest, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (BadRow(3, "not JSON"), "not JSON"),
        (Row(1, {"label": "lights"}), "'text' is missing"),
        (Row(1, {"text": "  ", "label": "lights"}), "empty"),
        (Row(1, {"text": "turn", "label": "weather"}), "'weather' is unknown"),
        (Row(1, {"text": "turn"}), "'label' is missing"),
    ],
)
def test_an_unusable_row_says_why(bundle: Bundle, row: Row | BadRow, reason: str) -> None:
    made = make_producer(bundle).produce(row, ordinal=0)
    assert isinstance(made, Unusable)
    assert reason in made.reason


@pytest.mark.parametrize("word", ["kaput", "void"])
def test_activations_that_are_not_finite_give_no_sample(bundle: Bundle, word: str) -> None:
    made = make_producer(bundle).produce(Row(1, {"text": f"turn {word} on", "label": "lights"}), ordinal=0)
    assert isinstance(made, NotFinite)


def test_holdout_sends_about_that_fraction_for_validation_and_equal_texts_to_one_side() -> None:
    policy = RolePolicy(holdout=0.2)
    roles = [policy.role_of(f"text {i}") for i in range(2000)]
    assert 0.17 < roles.count(Role.VALIDATION) / len(roles) < 0.23
    assert roles == [policy.role_of(f"text {i}") for i in range(2000)]


def test_a_larger_holdout_keeps_what_a_smaller_one_held_out() -> None:
    held_out = [i for i in range(500) if RolePolicy(holdout=0.1).role_of(str(i)) is Role.VALIDATION]
    assert all(RolePolicy(holdout=0.3).role_of(str(i)) is Role.VALIDATION for i in held_out)


def test_without_holdout_the_role_decides() -> None:
    assert RolePolicy(role=Role.VALIDATION).role_of("x") is Role.VALIDATION
    assert RolePolicy().role_of("x") is Role.TRAIN


def test_more_tokens_than_the_bundle_allows_are_refused(bundle: Bundle) -> None:
    assert longest_sample_tokens(bundle.manifest, None) == 16
    assert longest_sample_tokens(bundle.manifest, 4) == 4
    with pytest.raises(UsageError, match="bundle's 16"):
        longest_sample_tokens(bundle.manifest, 17)


def test_samples_that_would_not_fit_a_message_are_refused_with_the_length_that_does(bundle: Bundle) -> None:
    geometry = msgspec.structs.replace(bundle.manifest.geometry, hidden=65_536, max_tokens=2048)
    with pytest.raises(UsageError) as caught:
        longest_sample_tokens(msgspec.structs.replace(bundle.manifest, geometry=geometry), None)
    assert "--max-tokens 1024" in caught.value.cure


def test_a_machine_that_computes_something_else_fails_the_self_test(make_bundle) -> None:
    strict = make_bundle("strict", worst=1e-6)
    with pytest.raises(SelfTestFailed, match="mean error"):
        run_self_test(strict, open_front_end(strict))


def test_sequences_of_different_length_in_one_pass_give_what_they_give_alone(bundle: Bundle) -> None:
    front_end = open_front_end(bundle)
    together = front_end.run([[1, 2, 3], [4]])
    alone = [front_end.run([[1, 2, 3]])[0], front_end.run([[4]])[0]]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.scales, other.scales)
