"""Checks of what was handed to the device: bundle, signature, self-test, data. They only read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import SplitFrozenError
from sf_contract.signing import TrustList, check_signature, read_trust_list, signature_text
from sf_edge.bundles.candidates import (
    Acceptance,
    Candidate,
    LeftOut,
    bundle_folders,
    check_same_front_end,
    none_left,
    sift,
)
from sf_edge.doctor.findings import Concern, Found
from sf_edge.progress import readable_bytes
from sf_edge.settings import DeviceSettings, check_combination
from sf_edge.sources.opening import DataChoice, check_data
from sf_edge.sources.reading_rules import reading_rules

Remember = Callable[[list[Candidate]], Candidate | None]
"""Which of several bundles was chosen on this machine before; None when none was."""
ComputeError = Callable[[Bundle], float]
"""Runs a bundle's self-test: mean relative error; raises SelfTestFailed or BundleError."""


def look_at_settings(settings: DeviceSettings, parse_cpus: Callable[[str], frozenset[int]]) -> Found[None]:
    """Settings that are each fine, but not together.

    Raises:
        UsageError: naming them.
    """
    check_combination(settings)
    if settings.cpus is not None:
        parse_cpus(settings.cpus)
    return Found(None, f"device {settings.device}")


def look_at_bundle(folder: Path, trust: str | None, *, remember: Remember) -> Found[Bundle]:
    """Every file of the bundle against its manifest; of several quantizations the one that `sf-edge run` took before.

    Raises:
        BundleError, UntrustedBundle: it is damaged, or none of several can be used.
        MismatchError: several of different front ends.
    """
    folders = bundle_folders(folder)
    if folders == (folder,):
        bundle = open_bundle(folder)
        return Found(bundle, _bundle_text(bundle))
    accepted, left_out = sift(folders, Acceptance(_readable_trust(trust)))
    if not accepted:
        raise none_left(folder, left_out)
    check_same_front_end(folder, accepted)
    former = remember(accepted)
    bundle = (former or accepted[0]).bundle
    chosen = "chosen here before" if former else "the first of them, as sf-edge run has not chosen here yet"
    detail = f"of {len(folders)} in {folder} {bundle.folder.name}, {chosen}: {_bundle_text(bundle)}"
    return Found(bundle, detail, tuple(map(_left_out, left_out)))


def look_at_signature(bundle: Bundle, trust: str | None) -> Found[None]:
    """Who signed the bundle, and whether that is somebody trusted.

    Raises:
        UsageError: the trust list cannot be read.
        BundleError: the signature is not one of this bundle.
        UntrustedBundle: nobody on the list signed it.
    """
    wanted = None if trust is None else read_trust_list(Path(trust).expanduser())
    return Found(None, f"signed by {signature_text(check_signature(bundle, wanted))}")


def look_at_self_test(bundle: Bundle, compute_error: ComputeError) -> Found[float]:
    """What this machine computes, against the bundle's test vectors.

    Raises:
        BundleError: tokenizer or graph cannot be loaded.
        SelfTestFailed: this machine computes something else.
    """
    error = compute_error(bundle)
    return Found(error, f"{error:.2%} mean error, {bundle.manifest.self_test.max_mean_error:.2%} allowed")


def look_at_data(choice: DataChoice, settings: DeviceSettings, bundle: Bundle | None) -> Found[None]:
    """Whether there are rows to read, and whether this bundle can use rows of this form. Standard input is not read.

    Raises:
        DataError: nothing there, or nothing usable.
        UsageError: an option that this bundle cannot use.
    """
    check_data(choice)
    what = f"{choice.shown} can be read" if not choice.is_stream else f"{choice.shown} is open"
    if bundle is None:
        return Found(None, f"{what}; whether the bundle can use its rows was not looked at")
    rules = reading_rules(bundle.manifest.task, record_format=settings.format, label=settings.label)
    record_format = None if choice.is_stream or choice.path.is_dir() else rules.format_of(choice.path)
    if record_format is not None:
        rules.check(record_format, where=choice.shown)
    return Found(None, what)


def _bundle_text(bundle: Bundle) -> str:
    manifest = bundle.manifest
    nbytes = sum(file.nbytes for file in manifest.files)
    return (
        f"{bundle.bundle_id[:12]}, {manifest.base_model.name}, layers 1 to {manifest.geometry.split_layer}, "
        f"{readable_bytes(nbytes)}, whole"
    )


def _readable_trust(trust: str | None) -> TrustList | None:
    """The trust list; one that cannot be read is the signature's matter."""
    try:
        return None if trust is None else read_trust_list(Path(trust).expanduser())
    except SplitFrozenError:
        return None


def _left_out(item: LeftOut) -> Concern:
    return Concern(f"{item.line} (left out)", item.problem.cure)
