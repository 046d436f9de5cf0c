"""A folder with several quantizations of one front end: which one is used, and why the others are not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from sf_contract.bundle import MANIFEST_FILE, SIGNATURE_FILE, Bundle
from sf_contract.errors import BundleError, MismatchError, SelfTestFailed, UntrustedBundle
from sf_contract.manifest import Task, decode_manifest, encode_manifest
from sf_contract.signing import SigningKey, TrustList
from sf_edge.bench.tuning import Contest
from sf_edge.bench.tuning_files import write_record
from sf_edge.bundles.candidates import MOST_CANDIDATES, Acceptance, bundle_folders
from sf_edge.bundles.choice import Choice, Place, choose_bundle

KEY = SigningKey(bytes(range(32)))
HERE, ELSEWHERE = "1" * 64, "2" * 64
IMPOSSIBLE = 1e-9
"""A self-test limit that rows in int8 cannot keep."""


class Chooser:
    """Chooses in a folder, with speeds that are told instead of measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "many"
        self.state = folder / "state"
        self.said: list[str] = []
        self.measured: list[list[str]] = []
        self.speeds: dict[str, float] = {}

    def choose(self, *, machine: str = HERE, trust: TrustList | None = None, wanted_id: str | None = None) -> Choice:
        self.said.clear()
        return choose_bundle(
            self.folder,
            Acceptance(trust, wanted_id),
            place=Place(self.state, machine),
            say=self.said.append,
            speeds_of=self._speeds_of,
        )

    def _speeds_of(self, bundles: Sequence[Bundle]) -> Mapping[str, float]:
        self.measured.append(sorted(bundle.folder.name for bundle in bundles))
        return {bundle.bundle_id: self.speeds[bundle.folder.name] for bundle in bundles}


@pytest.fixture
def chooser(tmp_path: Path) -> Chooser:
    return Chooser(tmp_path)


@pytest.fixture
def three(make_bundle, chooser) -> dict[str, Bundle]:
    """Three quantizations, as far as anybody can tell: their manifests differ, their front end does not."""
    made = {name: make_bundle(f"many/{name}", worst=0.02 + 0.001 * i) for i, name in enumerate(("a", "b", "c"))}
    chooser.speeds = {"a": 100.0, "b": 200.0, "c": 150.0}
    return made


def test_a_bundle_folder_is_just_that_bundle_and_nothing_is_measured(tmp_path, make_bundle) -> None:
    chooser = Chooser(tmp_path)
    alone = make_bundle("many")
    chosen = chooser.choose()
    assert (chosen.bundle.bundle_id, chosen.reason, chooser.measured) == (alone.bundle_id, None, [])
    assert not chooser.state.exists()


def test_the_fastest_is_chosen_and_named(chooser, three) -> None:
    chosen = chooser.choose()
    assert chosen.bundle.bundle_id == three["b"].bundle_id
    assert len(chooser.said) == 1
    assert f"chosen of 3 bundles: b, {three['b'].bundle_id[:12]}, the fastest" in chooser.said[0]
    assert "a 100, b 200, c 150" in chooser.said[0]


def test_a_choice_is_remembered_on_this_machine_and_measured_again_on_another(chooser, three) -> None:
    chooser.choose()
    chooser.speeds = {"a": 900.0, "b": 1.0, "c": 1.0}
    assert chooser.choose().bundle.folder.name == "b"
    assert "as measured here before" in chooser.said[-1]
    assert len(chooser.measured) == 1
    assert chooser.choose(machine=ELSEWHERE).bundle.folder.name == "a"
    assert len(chooser.measured) == 2


def test_on_another_machine_the_former_choice_stays_unless_another_is_much_faster(chooser, three) -> None:
    chooser.choose()
    chooser.speeds = {"a": 108.0, "b": 100.0, "c": 1.0}
    assert chooser.choose(machine=ELSEWHERE).bundle.folder.name == "b"
    assert "chosen before" in chooser.said[-1]


def test_one_that_fails_its_self_test_is_left_out_by_name_however_fast(chooser, three, make_bundle) -> None:
    make_bundle("many/wrong", worst=IMPOSSIBLE)
    chooser.speeds["wrong"] = 9e9
    for _ in range(2):  # measured, then remembered
        chosen = chooser.choose()
        assert chosen.bundle.folder.name == "b"
        assert [item.folder.name for item in chosen.left_out] == ["wrong"]
        assert "left out: wrong: this machine computes the bundle's test vectors with" in chooser.said[0]
    assert chooser.measured == [["a", "b", "c"]]


def test_the_only_one_that_passes_needs_no_measurement(chooser, make_bundle) -> None:
    make_bundle("many/good")
    make_bundle("many/wrong", worst=IMPOSSIBLE)
    assert chooser.choose().reason == "the only one that can be used here"
    assert chooser.measured == []


def test_damaged_ones_are_left_out_by_name_and_the_rest_is_used(chooser, three) -> None:
    (three["b"].folder / "front.onnx").write_bytes(b"nonsense")
    chosen = chooser.choose()
    assert chosen.bundle.folder.name == "c"
    assert chooser.said[0].startswith("left out: b: ")
    assert "front.onnx has 8 bytes" in chooser.said[0]


def test_with_a_trust_list_only_signed_ones_take_part(chooser, three) -> None:
    (three["a"].folder / SIGNATURE_FILE).write_bytes(KEY.sign(three["a"].manifest))
    trust = TrustList(source="team.pub", keys=frozenset({KEY.public}))
    chosen = chooser.choose(trust=trust)
    assert chosen.bundle.folder.name == "a"
    assert chosen.candidate.signer is not None
    assert [item.folder.name for item in chosen.left_out] == ["b", "c"]
    with pytest.raises(UntrustedBundle, match=r"none of the 3 bundles .* a: .* b: .* c: "):
        chooser.choose(trust=TrustList(source="team.pub", keys=frozenset({SigningKey(bytes(32)).public})))


def test_when_none_is_left_every_reason_is_given(chooser, make_bundle) -> None:
    make_bundle("many/wrong", worst=IMPOSSIBLE)
    with pytest.raises(SelfTestFailed, match=r"none of the 1 bundles .* wrong: this machine"):
        chooser.choose()
    (make_bundle("many/broken").folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"none of the 2 bundles .* broken: .*tokenizer.json is missing; wrong: this"):
        chooser.choose()


@pytest.mark.parametrize("difference", ["cut", "task", "model", "tokens", "codec"])
def test_bundles_of_different_front_ends_are_listed_and_not_chosen_from(
    chooser, three, make_bundle, difference
) -> None:
    other = make_bundle("many/other", task=Task.CAUSAL_LM if difference == "task" else Task.TEXT_CLASSIFICATION)
    replace, manifest = msgspec.structs.replace, other.manifest
    geometry = manifest.geometry
    changed = {
        "cut": {"geometry": replace(geometry, split_layer=2, layers=3)},
        "task": {},
        "model": {"base_model": replace(manifest.base_model, weights_sha256="2" * 64)},
        "tokens": {"geometry": replace(geometry, max_tokens=32)},
        "codec": {"wire_codec": "fp32"},
    }[difference]
    (other.folder / MANIFEST_FILE).write_bytes(encode_manifest(replace(manifest, **changed)))
    assert decode_manifest((other.folder / MANIFEST_FILE).read_bytes(), where="changed")
    with pytest.raises(MismatchError, match=r"different front ends.* a: tiny, layers 1 to 1, .* other: ") as refused:
        chooser.choose()
    assert str(chooser.folder / "a") in refused.value.cure
    assert chooser.measured == []


def test_a_wanted_id_picks_its_bundle(chooser, three) -> None:
    assert chooser.choose(wanted_id=three["c"].bundle_id).bundle.folder.name == "c"


def test_copies_of_one_bundle_count_once(chooser, make_bundle) -> None:
    one = make_bundle("many/one")
    shutil.copytree(one.folder, chooser.folder / "two")
    assert chooser.choose().bundle.bundle_id == one.bundle_id
    assert chooser.measured == []


@pytest.mark.parametrize("raw", [b"", b"{}", b"not json"])
def test_a_damaged_memory_is_said_and_measured_anew(chooser, three, raw) -> None:
    chooser.choose()
    (memory,) = chooser.state.iterdir()
    memory.write_bytes(raw)
    assert chooser.choose().bundle.folder.name == "b"
    assert "is damaged and is ignored" in chooser.said[0]
    assert len(chooser.measured) == 2


def test_a_memory_that_names_other_bundles_is_not_believed(chooser, three) -> None:
    chooser.choose()
    (memory,) = chooser.state.iterdir()
    former = msgspec.json.decode(memory.read_bytes(), type=Contest)
    write_record(memory, msgspec.structs.replace(former, chosen="f" * 64))
    assert chooser.choose().bundle.folder.name == "b"
    assert len(chooser.measured) == 2


def test_a_choice_that_cannot_be_kept_is_used_all_the_same(chooser, three) -> None:
    chooser.state.write_text("a file where the folder should be")
    assert chooser.choose().bundle.folder.name == "b"
    assert any("cannot be kept" in line for line in chooser.said)


def test_half_written_and_foreign_folders_are_not_looked_at(tmp_path, make_bundle) -> None:
    make_bundle("many/good")
    shutil.copytree(tmp_path / "many/good", tmp_path / "many/.half-written")
    (tmp_path / "many/notes").mkdir()
    assert bundle_folders(tmp_path / "many") == (tmp_path / "many/good",)
    assert bundle_folders(tmp_path / "many/notes") == (tmp_path / "many/notes",)
    for i in range(MOST_CANDIDATES):
        (tmp_path / f"many/b{i}").mkdir()
        (tmp_path / f"many/b{i}" / MANIFEST_FILE).touch()
    with pytest.raises(BundleError, match="holds 33 bundles"):
        bundle_folders(tmp_path / "many")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_verify_and_run_use_the_same_one_and_say_which(edge, make_server, make_bundle, home) -> None:
    """Measured for real: which of the two equal ones wins is for the clock to say, but both commands must agree."""
    made = {name: make_bundle(f"many/{name}", worst=worst) for name, worst in {"a": 0.02, "b": 0.03}.items()}
    folder = made["a"].folder.parent
    make_bundle("many/wrong", worst=IMPOSSIBLE)
    verified = edge.command("verify", folder, json=True)
    assert verified.code == 0, verified.err
    chosen = made[Path(verified.summary["folder"]).name]
    assert verified.summary["bundle_id"] == chosen.bundle_id
    assert list(verified.summary["left_out"]) == ["wrong"]
    with make_server(of=chosen) as server:
        outcome = edge.run(server, edge.write(4), bundle=folder)
    assert outcome.code == 0, outcome.err
    assert (
        f"pi: chosen of 3 bundles: {chosen.folder.name}, {chosen.bundle_id[:12]}, as measured here before"
        in outcome.err
    )
    assert server.hellos[0].bundle_id == chosen.bundle_id


def test_run_refuses_a_folder_of_different_cuts_before_anything_is_sent(edge, server, make_bundle, home) -> None:
    first = make_bundle("many/cut1")
    other = make_bundle("many/cut2", name="other")
    replaced = msgspec.structs.replace(other.manifest.geometry, split_layer=2, layers=3)
    manifest = msgspec.structs.replace(other.manifest, geometry=replaced)
    (other.folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    outcome = edge.run(server, edge.write(4), bundle=first.folder.parent)
    assert outcome.code == MismatchError.exit_code
    assert "cut1: tiny, layers 1 to 1" in outcome.err
    assert "cut2: other, layers 1 to 2" in outcome.err
    assert server.hellos == []
