"""`sf-server keygen`: the server's key for encrypted links."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sf_contract.command import ArgumentParser, print_json
from sf_contract.errors import UsageError
from sf_contract.link_keys import make_link_key

DESCRIPTION: Final = """\
Make a server's key for encrypted links: a secret key that stays here, and a public key (.pub beside it) for the devices.
Nothing that exists is overwritten. Only needed for a key that several runs share: sf-server train makes one for its run."""

EPILOG: Final = """\
examples:
  sf-server keygen --out ~/.config/splitfrozen/server.key
  sf-server train --key ~/.config/splitfrozen/server.key --bind 'tcp://*:5555' ..."""


def main_keygen(arguments: Sequence[str]) -> int:
    """Run `sf-server keygen`; its exit code.

    Raises:
        UsageError: a file of that name exists, or it cannot be written.
    """
    parser = ArgumentParser(prog="sf-server keygen", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--out", metavar="FILE", help="the secret key's file (needed)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    given = vars(parser.parse_args(arguments))
    if "out" not in given:
        raise UsageError("sf-server keygen needs --out", cure="say where the key shall be: --out server.key")
    made = make_link_key(Path(given["out"]).expanduser())
    if "json" in given:
        print_json(
            {
                "key_id": made.public.key_id,
                "secret_key": str(made.path),
                "public_key": str(made.public_path),
                "public_key_hex": made.public.hex,
            }
        )
    else:
        print(
            f"key {made.public.key_id}\n"
            f"  {made.path} is the server's secret: give it to sf-server train --key\n"
            f"  {made.public_path} goes to the devices: sf-edge run --server-key, the file or its {len(made.public.hex)} digits"
        )
    return 0
