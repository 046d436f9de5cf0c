"""`sf-edge keygen`: what is told about this device's new key for the link to servers."""

from __future__ import annotations

from sf_contract.link_keys import WrittenKey


def keygen_text(made: WrittenKey) -> str:
    """Where the files are and what to do with them, for a person."""
    return (
        f"key {made.public.key_id}\n"
        f"  {made.path} is this device's secret: it never leaves it\n"
        f"  {made.public_path} goes to the server, into its folder of authorized keys, under this device's name there:\n"
        f"    scp {made.public_path} SERVER:RUN/authorized/NAME.pub"
    )


def keygen_json(made: WrittenKey) -> dict[str, str]:
    """The same for a machine."""
    return {
        "key_id": made.public.key_id,
        "secret_key": str(made.path),
        "public_key": str(made.public_path),
        "public_key_hex": made.public.hex,
    }
