"""`sf-export inspect` and `sf-export verify`: what a bundle holds, who signed it, and whether it works here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sf_contract.bundle import Bundle, check_id, open_bundle
from sf_contract.command import ArgumentParser, print_json
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.signing import Signer, check_signature, read_trust_list, signature_text
from sf_contract.tokenizer import open_tokenizer

_INSPECT_DESCRIPTION: Final = (
    "Say what a bundle holds and who signed it, after checking all of its hashes and its signature."
)

_INSPECT_EPILOG: Final = """\
examples:
  sf-export inspect bundles/gpt2-cut4
  sf-export inspect bundles/gpt2-cut4 --json"""

_VERIFY_DESCRIPTION: Final = """\
Check a bundle: every hash, the signature, the tokenizer, and what its graph computes for the test vectors on this machine.
Hashes alone notice accidents. To notice an exchange too, give a trust list, or the id that the bundle's maker told you."""

_VERIFY_EPILOG: Final = """\
examples:
  sf-export verify bundles/gpt2-cut4
  sf-export verify bundles/gpt2-cut4 --trust team.key.pub       signed by a key in this file
  sf-export verify bundles/gpt2-cut4 --trust /etc/splitfrozen   by any .pub file in this folder
  sf-export verify bundles/gpt2-cut4 --id 1f0c...               exactly this bundle"""


def inspect_command(argv: Sequence[str]) -> int:
    """`sf-export inspect BUNDLE`.

    Raises:
        BundleError: the bundle is damaged.
    """
    from sf_export.report import report_of, table_of  # noqa: PLC0415  (verifying needs no PyTorch)

    arguments = _parser("inspect", description=_INSPECT_DESCRIPTION, epilog=_INSPECT_EPILOG).parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    signer = check_signature(bundle, None)
    if "json" in arguments:
        print_json({**report_of(bundle.folder, bundle.manifest, None), **_signer_fields(signer)})
    else:
        print(f"bundle     {bundle.bundle_id}\nsigned by  {signature_text(signer)}\n{table_of(bundle.manifest, None)}")
    return 0


def verify_command(argv: Sequence[str]) -> int:
    """`sf-export verify BUNDLE [--trust FILE|DIR] [--id ID]`.

    Raises:
        BundleError: the bundle is damaged, is another one, or carries a signature that is not its own.
        UntrustedBundle: nobody on the trust list signed it.
        SelfTestFailed: this machine computes something else than the bundle says.
    """
    parser = _parser("verify", description=_VERIFY_DESCRIPTION, epilog=_VERIFY_EPILOG)
    parser.add_argument("--trust", metavar="FILE|DIR", help="public keys whose bundles are accepted")
    parser.add_argument("--id", metavar="ID", help="the bundle's id, as its maker gave it to you")
    given = vars(parser.parse_args(argv))
    trust = read_trust_list(Path(given["trust"]).expanduser()) if "trust" in given else None
    bundle = open_bundle(given["bundle"])
    check_id(bundle, given.get("id"))
    signer = check_signature(bundle, trust)
    open_tokenizer(bundle)
    _print_verification(bundle, signer, run_self_test(bundle, open_front_end(bundle)), as_json="json" in given)
    return 0


def _print_verification(bundle: Bundle, signer: Signer | None, error: float, *, as_json: bool) -> None:
    limit = bundle.manifest.self_test.max_mean_error
    if as_json:
        print_json(
            {
                "bundle_id": bundle.bundle_id,
                "self_test_error": error,
                "self_test_limit": limit,
                **_signer_fields(signer),
            }
        )
    else:
        print(
            f"{bundle.folder} {bundle.bundle_id} is whole; self-test error {error:.2%} (limit {limit:.2%})\n"
            f"signed by {signature_text(signer)}"
        )


def _signer_fields(signer: Signer | None) -> dict[str, str | bool | None]:
    return {"signed_by": signer.key_id if signer else None, "trusted": signer.trusted if signer else False}


def _parser(command: str, **texts: str) -> argparse.ArgumentParser:
    parser = ArgumentParser(prog=f"sf-export {command}", **texts)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser
