"""The bundles of one run: opened, proven to belong together, and known by their ids. Needs no torch.

Devices of different strength run different cuts of one base model, each with a bundle of its own. What they send can train
one adapter only when it means the same: same base model, task, labels, text template, tokens and length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import MismatchError, UsageError
from sf_contract.int4 import Int4Parameters
from sf_contract.manifest import BaseModel, Manifest
from sf_server.settings import TrainSettings
from sf_server.store.stored import DeviceSummary

_SHORT_ID: Final = 12
_CURE: Final = (
    "export them together, for example with sf-export --split-layer 2,4,8, which makes them differ in the cut only"
)


def open_bundles(folders: Sequence[Path]) -> tuple[Bundle, ...]:
    """Verified bundles that belong together, shallowest cut first.

    Raises:
        BundleError: one of them cannot be used.
        UsageError: one is given twice.
        MismatchError: two of them do not belong together; names both and every field that differs.
    """
    bundles = [open_bundle(folder) for folder in folders]
    for index, bundle in enumerate(bundles):
        for earlier in bundles[:index]:
            _check_pair(earlier, bundle)
    return tuple(sorted(bundles, key=lambda bundle: (cut_of(bundle), bundle.bundle_id)))


def open_run_bundles(settings: TrainSettings, bundle_ids: Sequence[str]) -> tuple[Bundle, ...]:
    """The bundles of a run, from the folders its settings name.

    Raises:
        MismatchError: the folders hold other bundles than the run was made with; and as `open_bundles` does.
    """
    bundles = open_bundles(settings.bundle_paths)
    strange = [bundle for bundle in bundles if bundle.bundle_id not in bundle_ids]
    if strange or len(bundles) != len(bundle_ids):
        found = strange[0] if strange else bundles[0]
        known = ", ".join(bundle_id[:_SHORT_ID] for bundle_id in bundle_ids)
        raise MismatchError(
            f"{found.folder} holds bundle {found.bundle_id[:_SHORT_ID]}, the run belongs to {known}",
            cure="give the run's bundles with --bundle",
        )
    return bundles


def check_store(summaries: Sequence[DeviceSummary], bundles: Sequence[Bundle]) -> None:
    """Refuse a store whose samples other bundles computed.

    Raises:
        MismatchError: there are some; names a device and both sides' bundles.
    """
    ours = {bundle.bundle_id for bundle in bundles}
    strange = next((summary for summary in summaries if summary.samples and summary.bundle_id not in ours), None)
    if strange is not None:
        known = ", ".join(bundle.bundle_id[:_SHORT_ID] for bundle in bundles)
        raise MismatchError(
            f"the store holds samples that {strange.device} computed with bundle {strange.bundle_id[:_SHORT_ID]}; "
            f"the run's bundles are {known}",
            cure="give the run folder that these samples were sent to, or start a new run",
        )


def int4_by_bundle(bundles: Sequence[Bundle]) -> dict[str, Int4Parameters]:
    """What decoding the rows of each bundle needs, by bundle id, for those whose wire codec is int4."""
    found = {bundle.bundle_id: bundle.int4_parameters() for bundle in bundles}
    return {bundle_id: parameters for bundle_id, parameters in found.items() if parameters is not None}


def cut_of(bundle: Bundle) -> int:
    """The bundle's split layer."""
    return bundle.manifest.geometry.split_layer


def deepest_cut(bundles: Sequence[Bundle]) -> int:
    """The largest cut among bundles."""
    return max(map(cut_of, bundles))


def first_lora_layer(settings: TrainSettings, bundles: Sequence[Bundle]) -> int:
    """The lowest layer that carries LoRA: what was asked for, or the deepest cut.

    Raises:
        UsageError: it lies below the deepest cut or outside the model, or ranks are given for layers without LoRA.
    """
    deepest, layers = deepest_cut(bundles), bundles[0].manifest.geometry.layers
    first = deepest if settings.lora_first_layer is None else settings.lora_first_layer
    if not deepest <= first < layers:
        why = f"the deepest cut is {deepest}" if first < deepest else f"the model has {layers} layers"
        raise UsageError(
            f"--lora-first-layer {first} is out of range: {why}",
            cure=f"choose a layer from {deepest} to {layers - 1}, or leave the option out for {deepest}",
        )
    outside = [layer for layer in settings.layer_ranks() if not first <= layer < layers]
    if outside:
        raise UsageError(
            f"--lora-layer-ranks names layer {outside[0]}, which carries no LoRA",
            cure=f"name layers from {first} to {layers - 1}",
        )
    return first


def _check_pair(one: Bundle, other: Bundle) -> None:
    if one.bundle_id == other.bundle_id:
        raise UsageError(
            f"{one.folder} and {other.folder} hold the same bundle {one.bundle_id[:_SHORT_ID]}", cure="give it once"
        )
    wanted, found = _fields(one.manifest), _fields(other.manifest)
    different = [f"{name} ({wanted[name]}; {found[name]})" for name in wanted if wanted[name] != found[name]]
    if not _same_weights(one.manifest.base_model, other.manifest.base_model):
        different.insert(0, f"base model ({_shown_base(one)}; {_shown_base(other)})")
    if different:
        raise MismatchError(
            f"bundles {one.folder} and {other.folder} cannot train one adapter: they differ in {', '.join(different)}",
            cure=_CURE,
        )


def _same_weights(one: BaseModel, other: BaseModel) -> bool:
    return (one.weights_sha256, one.config_sha256) == (other.weights_sha256, other.config_sha256)


def _shown_base(bundle: Bundle) -> str:
    base = bundle.manifest.base_model
    return f"{base.name}, weights {base.weights_sha256[:_SHORT_ID]}, config {base.config_sha256[:_SHORT_ID]}"


def _fields(manifest: Manifest) -> dict[str, str]:
    """What must be equal besides the base model's weights, as it is shown."""
    geometry, task = manifest.geometry, msgspec.structs.asdict(manifest.task)
    template = msgspec.structs.asdict(task.pop("template"))
    tokenizer = next(file for file in manifest.files if file.name == manifest.tokenizer_file)
    return {
        "layers": str(geometry.layers),
        "hidden size": str(geometry.hidden),
        "vocabulary": str(geometry.vocabulary),
        "max tokens": str(geometry.max_tokens),
        **{name.replace("_", " "): _shown(value) for name, value in task.items()},
        **{f"{name.replace('_', ' ')} template": _shown(value) for name, value in template.items()},
        "tokenizer": tokenizer.sha256[:_SHORT_ID],
    }


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
