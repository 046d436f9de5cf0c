"""`sf-edge verify`: does this machine hold an undamaged bundle, and compute what the bundle says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sf_contract.bundle import Bundle, check_id, open_bundle
from sf_contract.front_end import RUNTIME_VERSION, open_front_end, run_self_test
from sf_contract.signing import Signer, TrustList, check_signature, signature_text
from sf_contract.tokenizer import open_tokenizer


@dataclass(frozen=True, slots=True)
class Verification:
    """A bundle that passed, who signed it, and the mean relative error of this machine's rows on its test vectors."""

    bundle: Bundle
    signer: Signer | None
    self_test_error: float


def verify_bundle(folder: Path, *, trust: TrustList | None = None, wanted_id: str | None = None) -> Verification:
    """Check files, signature, tokenizer, graph and self-test.

    Args:
        folder: the bundle.
        trust: whose bundles are accepted; None accepts unsigned ones too.
        wanted_id: the one id that is accepted; None accepts any.

    Raises:
        BundleError: a file is damaged or cannot be loaded, the id is another, or the signature is of something else.
        UntrustedBundle: nobody on the trust list signed it.
        SelfTestFailed: this machine computes something else.
    """
    bundle = open_bundle(folder)
    check_id(bundle, wanted_id)
    signer = check_signature(bundle, trust)
    open_tokenizer(bundle)
    error = run_self_test(bundle, open_front_end(bundle))
    return Verification(bundle=bundle, signer=signer, self_test_error=error)


def verification_json(found: Verification) -> dict[str, object]:
    """The result for machines."""
    manifest = found.bundle.manifest
    return {
        "bundle_id": found.bundle.bundle_id,
        "signed_by": found.signer.key_id if found.signer else None,
        "trusted": found.signer.trusted if found.signer else False,
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
            f"  signed by {signature_text(found.signer)}",
            f"  self-test: {found.self_test_error:.2%} mean error, {manifest.self_test.max_mean_error:.2%} allowed",
        )
    )
