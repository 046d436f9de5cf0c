"""Several bundles in one run: those that belong together are taken, all others refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sf_contract.bundle import MANIFEST_FILE, Bundle, describe_file, open_bundle
from sf_contract.codec import WireCodec
from sf_contract.errors import MismatchError, SplitFrozenError, UsageError
from sf_contract.manifest import Manifest, Task, encode_manifest
from sf_server.bundles import check_store, cut_of, deepest_cut, first_lora_layer, open_bundles, open_run_bundles
from sf_server.link.reception import router_limits
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings, check_train_settings, with_absolute_paths
from sf_server.store.store import Store
from sf_server.supervision.train_command import main_train, read_settings

Vary = Callable[..., Bundle]
LAYERS = 9


@pytest.fixture
def vary(make_bundle: Any, tmp_path: Path) -> Vary:
    """Bundles of one base model with 9 layers; what is given replaces fields of the manifest's parts, `cut` the split layer."""
    made: Bundle | None = None
    count = 0

    def make(*, cut: int = 2, **changes: dict[str, object] | object) -> Bundle:
        nonlocal made, count
        made = made or make_bundle(name="original")
        count += 1
        folder = tmp_path / f"bundle{count}"
        shutil.copytree(made.folder, folder)
        tokenizer = changes.pop("tokenizer", None)
        if isinstance(tokenizer, bytes):
            (folder / "tokenizer.json").write_bytes(tokenizer)
        files = tuple(describe_file(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST_FILE)
        manifest = msgspec.structs.replace(made.manifest, files=files)
        geometry = {"split_layer": cut, "layers": LAYERS, **changes.pop("geometry", {})}  # type: ignore[dict-item]
        (folder / MANIFEST_FILE).write_bytes(encode_manifest(_changed(manifest, geometry=geometry, **changes)))
        return open_bundle(folder)

    return make


def _changed(manifest: Manifest, **changes: Any) -> Manifest:
    for name, value in changes.items():
        part = msgspec.structs.replace(getattr(manifest, name), **value) if isinstance(value, dict) else value
        manifest = msgspec.structs.replace(manifest, **{name: part})
    return manifest


def _settings(*bundles: Bundle, **changes: object) -> TrainSettings:
    return TrainSettings(bundle=tuple(str(b.folder) for b in bundles), run="/run", expect_devices=1, **changes)


def test_bundles_of_one_model_belong_together_whatever_their_cut_and_codec(vary: Vary) -> None:
    given = [vary(cut=8), vary(cut=2, wire_codec=WireCodec.FP32), vary(cut=4)]
    opened = open_bundles([bundle.folder for bundle in given])
    assert [cut_of(bundle) for bundle in opened] == [2, 4, 8]
    assert deepest_cut(opened) == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"base_model": {"weights_sha256": "9" * 64}},
            "base model (original, weights 111111111111, config 000000000000;",
        ),
        ({"base_model": {"config_sha256": "8" * 64}}, "original, weights 111111111111, config 888888888888)"),
        ({"geometry": {"hidden": 8, "vocabulary": 99}}, "vocabulary (100; 99)"),
        ({"geometry": {"layers": 10}}, "layers (9; 10)"),
        ({"geometry": {"max_tokens": 12}}, "max tokens (16; 12)"),
        ({"task": {"labels": ("no", "maybe")}}, "labels (no, yes; no, maybe)"),
        ({"task": {"labels": ("yes", "no")}}, "labels (no, yes; yes, no)"),
        ({"task": {"end_token_id": 3}}, "end token id (none; 3)"),
        ({"task": {"task": Task.CAUSAL_LM, "labels": ()}}, "task (text-classification; causal-lm)"),
        ({"tokenizer": b"{ }"}, "tokenizer ("),
    ],
    ids=["weights", "config", "vocabulary", "layers", "tokens", "labels", "label-order", "end", "task", "tokenizer"],
)
def test_bundles_that_mean_something_else_are_refused_with_both_and_the_field(
    vary: Vary, change: dict[str, Any], told: str
) -> None:
    one, other = vary(cut=2), vary(cut=4, **change)
    with pytest.raises(MismatchError) as raised:
        open_bundles([one.folder, other.folder])
    assert told in raised.value.what
    assert str(one.folder) in raised.value.what
    assert str(other.folder) in raised.value.what
    assert "sf-export --split-layer 2,4,8" in raised.value.cure


def test_another_text_template_is_refused_and_every_difference_is_told(vary: Vary) -> None:
    one = vary()
    template = msgspec.structs.replace(one.manifest.task.template, prompt="Q: {text}")
    other = vary(task={"template": template}, geometry={"max_tokens": 9})
    with pytest.raises(MismatchError) as raised:
        open_bundles([one.folder, other.folder])
    assert "max tokens (16; 9)" in raised.value.what
    assert "prompt template ({text}; Q: {text})" in raised.value.what


def test_the_name_of_the_base_model_alone_is_no_difference(vary: Vary) -> None:
    assert len(open_bundles([vary(cut=1).folder, vary(cut=2, base_model={"name": "moved"}).folder])) == 2


def test_one_bundle_given_twice_is_refused(vary: Vary) -> None:
    bundle = vary()
    with pytest.raises(UsageError, match="hold the same bundle"):
        open_bundles([bundle.folder, bundle.folder])


def test_a_run_knows_its_bundles_by_their_ids(vary: Vary) -> None:
    one, other, stranger = vary(cut=2), vary(cut=4), vary(cut=5)
    ids = [one.bundle_id, other.bundle_id]
    assert [b.bundle_id for b in open_run_bundles(_settings(other, one), ids)] == ids
    for settings in (_settings(one, stranger), _settings(one)):
        with pytest.raises(MismatchError, match="the run belongs to") as raised:
            open_run_bundles(settings, ids)
        assert one.bundle_id[:12] in raised.value.what
        assert other.bundle_id[:12] in raised.value.what


def test_the_first_layer_with_lora_is_the_deepest_cut_unless_a_higher_one_is_asked_for(vary: Vary) -> None:
    bundles = open_bundles([vary(cut=2).folder, vary(cut=4).folder])
    assert first_lora_layer(_settings(*bundles), bundles) == 4
    assert first_lora_layer(_settings(*bundles, lora_first_layer=8), bundles) == 8


@pytest.mark.parametrize(("layer", "why"), [(3, "the deepest cut is 4"), (9, "the model has 9 layers")])
def test_a_first_layer_below_the_deepest_cut_or_outside_the_model_is_refused(vary: Vary, layer: int, why: str) -> None:
    bundles = open_bundles([vary(cut=2).folder, vary(cut=4).folder])
    with pytest.raises(UsageError, match=why) as raised:
        first_lora_layer(_settings(*bundles, lora_first_layer=layer), bundles)
    assert raised.value.cure == "choose a layer from 4 to 8, or leave the option out for 4"


@pytest.mark.parametrize("ranks", ["3=4", "7-9=4"])
def test_ranks_of_layers_without_lora_are_refused(vary: Vary, ranks: str) -> None:
    bundles = (vary(cut=4),)
    with pytest.raises(UsageError, match="carries no LoRA") as raised:
        first_lora_layer(_settings(*bundles, lora_layer_ranks=(ranks,)), bundles)
    assert raised.value.cure == "name layers from 4 to 8"


def test_ranks_of_layers_are_read_as_ranges() -> None:
    settings = TrainSettings(bundle="b", run="r", expect_devices=1, lora_layer_ranks=("4-6=16", "8=2"))
    check_train_settings(settings)
    assert settings.layer_ranks() == {4: 16, 5: 16, 6: 16, 8: 2}


@pytest.mark.parametrize("ranks", [("6-4=2",), ("4=0",), ("4=5000",), ("4-6=2", "5=3")])
def test_ranks_that_contradict_themselves_are_refused(ranks: tuple[str, ...]) -> None:
    settings = TrainSettings(bundle="b", run="r", expect_devices=1, lora_layer_ranks=ranks)
    with pytest.raises(UsageError, match="--lora-layer-ranks"):
        check_train_settings(settings)


@pytest.mark.parametrize("text", ["4", "4=", "a=3", "4-=3", "4=3;5=2"])
def test_ranks_that_cannot_be_read_are_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(UsageError, match="--lora-layer-ranks"):
        read_settings(["--bundle", "b", "--run", "r", "--expect-devices", "1", "--lora-layer-ranks", text])


def test_bundles_are_given_one_by_one_or_as_a_list_in_a_file(tmp_path: Path) -> None:
    often = read_settings(["--bundle", "/a", "--bundle", "/b", "--run", "/r", "--expect-devices", "1"])
    assert often.bundle_paths == (Path("/a"), Path("/b"))
    once = read_settings(["--bundle", "/a", "--run", "/r", "--expect-devices", "1"])
    assert with_absolute_paths(once).bundle == "/a"
    for text, paths in (('bundle = "/a"', ("/a",)), ('bundle = ["/a", "/b"]', ("/a", "/b"))):
        (tmp_path / "s.toml").write_text(text + "\nrun = '/r'\nexpect_devices = 1\n")
        settings = read_settings(["--config", str(tmp_path / "s.toml")])
        assert settings.bundle_paths == tuple(map(Path, paths))
    (tmp_path / "s.toml").write_text("bundle = []\nrun = '/r'\nexpect_devices = 1\n")
    with pytest.raises(UsageError, match="bundle"):
        read_settings(["--config", str(tmp_path / "s.toml")])


@pytest.mark.parametrize("options", [["--lora-first-layer", "1"], ["--lora-layer-ranks", "1=4"]])
def test_what_does_not_fit_the_bundles_is_refused_before_a_run_is_made(
    vary: Vary, tmp_path: Path, options: list[str]
) -> None:
    bundle, run = vary(cut=4), tmp_path / "run"
    with pytest.raises(SplitFrozenError):
        main_train(["--bundle", str(bundle.folder), "--run", str(run), "--expect-devices", "1", *options])
    assert not run.exists()


def test_a_run_is_resumed_with_its_own_bundles_in_any_order(vary: Vary, tmp_path: Path) -> None:
    ids = [vary(cut=2).bundle_id, vary(cut=4).bundle_id]
    folder = RunFolder(tmp_path / "run")
    settings = TrainSettings(bundle=("/a", "/b"), run="/r", expect_devices=1)
    folder.create(settings, bundle_ids=ids)
    folder.resume(settings, bundle_ids=ids[::-1])
    with pytest.raises(MismatchError, match="--bundle ") as raised:
        folder.resume(settings, bundle_ids=ids[:1])
    assert f"-> {ids[0][:12]}" in raised.value.what


def test_a_store_whose_samples_other_bundles_computed_is_refused(vary: Vary, tmp_path: Path, make_sample: Any) -> None:
    ours, other = vary(cut=2), vary(cut=4)
    device = {"device": "phone", "outbox": "1" * 32, "bundle_id": other.bundle_id}
    with Store.open(tmp_path / "store.sqlite", max_bytes=1 << 24) as store:
        store.note_hello(**device, self_test_error=0.0, waiting_samples=1, now_s=1.0)
        check_store(store.device_summaries(), [ours])  # it has only said hello
        store.add(**device, samples=[make_sample(0)])
        check_store(store.device_summaries(), [ours, other])
        with pytest.raises(MismatchError, match="phone computed with bundle") as raised:
            check_store(store.device_summaries(), [ours])
    assert other.bundle_id[:12] in raised.value.what
    assert ours.bundle_id[:12] in raised.value.what


def test_connections_are_limited_by_the_largest_samples_that_any_bundle_allows(vary: Vary) -> None:
    narrow = vary().manifest
    wide = _changed(narrow, geometry={"hidden": 4096, "max_tokens": 4096})
    limits = [router_limits(m, credit_bytes=1 << 20, connections=5) for m in ([narrow], [wide], [narrow, wide])]
    assert limits[2] == limits[1] != limits[0]
