"""Whose bundles a device accepts: `--trust`, on the command line and in the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf_contract.bundle import SIGNATURE_FILE, Bundle
from sf_contract.errors import BundleError, UntrustedBundle, UsageError
from sf_contract.signing import SigningKey

KEY = SigningKey(bytes(range(32)))
STRANGER = SigningKey(bytes(32))


def sign(bundle: Bundle, key: SigningKey) -> Bundle:
    (bundle.folder / SIGNATURE_FILE).write_bytes(key.sign(bundle.manifest))
    return bundle


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """A folder of trusted keys."""
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "team.pub").write_text(KEY.public.line())
    return folder


def test_a_bundle_of_a_trusted_maker_runs_and_names_the_maker(edge, server, make_bundle, trusted) -> None:
    signed = sign(make_bundle("signed"), KEY)
    outcome = edge.run(server, edge.write(3), bundle=signed.folder, trust=trusted)
    assert outcome.code == 0, outcome.err
    assert f"signed by {KEY.public.key_id} (on the trust list)" in outcome.err
    assert server.ordinals() == [0, 1, 2]


def test_an_unsigned_bundle_is_refused_before_anything_is_computed_or_sent(edge, server, trusted) -> None:
    outcome = edge.run(server, edge.write(3), trust=trusted)
    assert outcome.code == UntrustedBundle.exit_code
    assert "is not signed" in outcome.err
    assert server.hellos == []
    assert not edge.outbox.exists()


def test_an_unknown_signer_is_refused_by_name(edge, server, make_bundle, trusted) -> None:
    signed = sign(make_bundle("signed"), STRANGER)
    outcome = edge.run(server, edge.write(3), bundle=signed.folder, trust=trusted / "team.pub")
    assert outcome.code == UntrustedBundle.exit_code
    assert STRANGER.public.key_id in outcome.err


def test_a_signature_of_something_else_is_refused_even_without_a_trust_list(edge, server, make_bundle) -> None:
    older = sign(make_bundle("older", name="older"), KEY)
    newer = make_bundle("newer", name="newer")
    (older.folder / SIGNATURE_FILE).rename(newer.folder / SIGNATURE_FILE)
    outcome = edge.run(server, edge.write(3), bundle=newer.folder)
    assert outcome.code == BundleError.exit_code
    assert "one of them was changed" in outcome.err
    assert server.hellos == []


def test_without_a_trust_list_any_whole_bundle_runs_and_says_what_is_known(edge, server, make_bundle) -> None:
    signed = sign(make_bundle("signed"), STRANGER)
    outcome = edge.run(server, edge.write(2), bundle=signed.folder)
    assert outcome.code == 0
    assert "no trust list was given" in outcome.err


def test_trust_may_stand_in_the_settings_file(edge, server, tmp_path, trusted) -> None:
    (tmp_path / "edge.toml").write_text(f'trust = "{trusted}"\n')
    outcome = edge.run(server, edge.write(3), config=tmp_path / "edge.toml")
    assert outcome.code == UntrustedBundle.exit_code


def test_a_trust_list_without_keys_is_a_mistake_and_not_trust_in_everybody(edge, server, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = edge.run(server, edge.write(3), trust=tmp_path / "empty")
    assert outcome.code == UsageError.exit_code
    assert "holds no public key" in outcome.err


def test_verify_says_who_signed_and_whether_it_is_the_wanted_bundle(edge, make_bundle, trusted) -> None:
    signed = sign(make_bundle("signed"), KEY)
    outcome = edge.command("verify", signed.folder, trust=trusted, id=signed.bundle_id, json=True)
    assert outcome.code == 0, outcome.err
    assert (outcome.summary["signed_by"], outcome.summary["trusted"]) == (KEY.public.key_id, True)
    assert edge.command("verify", signed.folder, id="0" * 64).code == BundleError.exit_code
