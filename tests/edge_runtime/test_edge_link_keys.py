"""The device's public key, which it gets from ZeroMQ's library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sf_contract.link_keys import LinkSecretKey
from sf_edge.link.dealer import public_key

SECRETS = [bytes(range(32)), b"\xff" * 32, b"\0" * 31 + b"\1"]


@pytest.mark.parametrize("raw", SECRETS, ids=["counted", "ones", "one"])
def test_it_is_the_one_that_pynacl_gives(raw):
    secret = LinkSecretKey(raw)
    assert public_key(secret) == secret.public


def test_opening_an_encrypted_link_loads_neither_pynacl_nor_openssl():
    script = (
        "import sys\n"
        "from sf_contract.link_keys import LinkPublicKey, LinkSecretKey\n"
        "from sf_edge.link.dealer import Link, public_key\n"
        "from sf_edge.link.security import LinkKeys\n"
        "secret = LinkSecretKey(bytes(range(32)))\n"
        "with Link('tcp://127.0.0.1:9', LinkKeys(secret=secret, server=public_key(secret))) as link:\n"
        "    link.connect()\n"
        "loaded = {'nacl', '_hashlib', '_ssl'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
