"""`sf-edge verify`: does this machine hold an undamaged bundle, and compute what the bundle says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sf_contract.bundle import Bundle
from sf_contract.command import say
from sf_contract.front_end import RUNTIME_VERSION, open_front_end, run_self_test
from sf_contract.signing import Signer, TrustList, signature_text
from sf_contract.tokenizer import open_tokenizer
from sf_edge.bench.tuning_files import default_tuning_folder
from sf_edge.bundles.candidates import Acceptance, LeftOut
from sf_edge.bundles.choice import choose_bundle, this_place


@dataclass(frozen=True, slots=True)
class Verification:
    """A bundle that passed.

    Attributes:
        signer: who signed it; None when nobody did.
        self_test_error: mean relative error of this machine's rows on its test vectors.
        reason: why this one of several quantizations; None where there was only one bundle.
        left_out: the others that cannot be used.
    """

    bundle: Bundle
    signer: Signer | None
    self_test_error: float
    reason: str | None = None
    left_out: tuple[LeftOut, ...] = ()


def verify_bundle(folder: Path, *, trust: TrustList | None = None, wanted_id: str | None = None) -> Verification:
    """Check files, signature, tokenizer, graph and self-test, of several quantizations those of the one `sf-edge run` takes.

    Args:
        folder: the bundle, or a folder with several quantizations of one front end.
        trust: whose bundles are accepted; None accepts unsigned ones too.
        wanted_id: the one id that is accepted; None accepts any.

    Raises:
        BundleError: a file is damaged or cannot be loaded, the id is another, or the signature is of something else.
        UntrustedBundle: nobody on the trust list signed it.
        SelfTestFailed: this machine computes something else.
        MismatchError: the bundles in the folder are of different front ends.
    """
    place = this_place(default_tuning_folder())
    chosen = choose_bundle(folder, Acceptance(trust, wanted_id), place=place, say=say)
    open_tokenizer(chosen.bundle)
    error = run_self_test(chosen.bundle, open_front_end(chosen.bundle))
    return Verification(
        bundle=chosen.bundle,
        signer=chosen.candidate.signer,
        self_test_error=error,
        reason=chosen.reason,
        left_out=chosen.left_out,
    )


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
        "folder": str(found.bundle.folder),
        "chosen_because": found.reason,
        "left_out": {item.folder.name: item.problem.what for item in found.left_out},
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
