"""`sf-edge verify`: does this machine hold an undamaged bundle, and compute what the bundle says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.front_end import RUNTIME_VERSION, open_front_end, run_self_test
from sf_contract.tokenizer import BundleTokenizer


@dataclass(frozen=True, slots=True)
class Verification:
    """A bundle that passed, and the mean relative error of this machine's rows on its test vectors."""

    bundle: Bundle
    self_test_error: float


def verify_bundle(folder: Path) -> Verification:
    """Check files, tokenizer, graph and self-test.

    Raises:
        BundleError: a file is damaged or cannot be loaded.
        SelfTestFailed: this machine computes something else.
    """
    bundle = open_bundle(folder)
    BundleTokenizer(bundle.tokenizer_path)
    return Verification(bundle=bundle, self_test_error=run_self_test(bundle, open_front_end(bundle)))


def verification_json(found: Verification) -> dict[str, object]:
    """The result for machines."""
    manifest = found.bundle.manifest
    return {
        "bundle_id": found.bundle.bundle_id,
        "model": manifest.base_model.name,
        "task": manifest.task.task.value,
        "split_layer": manifest.geometry.split_layer,
        "layers": manifest.geometry.layers,
        "wire_codec": manifest.wire_codec.value,
        "max_tokens": manifest.geometry.max_tokens,
        "self_test_error": found.self_test_error,
        "allowed_error": manifest.self_test.max_mean_error,
        "onnxruntime": RUNTIME_VERSION,
    }


def verification_text(found: Verification) -> str:
    """The result for a person."""
    manifest, geometry = found.bundle.manifest, found.bundle.manifest.geometry
    return "\n".join(
        (
            f"bundle {found.bundle.bundle_id}",
            f"  {manifest.base_model.name}, layers 1 to {geometry.split_layer} of {geometry.layers}, "
            f"{manifest.task.task}, {manifest.wire_codec} rows, at most {geometry.max_tokens} tokens",
            f"  {len(manifest.files)} files are what the manifest says",
            f"  self-test: {found.self_test_error:.2%} mean error, {manifest.self_test.max_mean_error:.2%} allowed",
        )
    )
