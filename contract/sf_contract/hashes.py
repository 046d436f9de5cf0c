"""Hash functions, without OpenSSL where Python has its own.

`import hashlib` maps OpenSSL's library: 3.5 MB that a small device would keep for good, to hash a bundle once. Python's own
SHA-256 takes 4.1 ms per MB against 0.9 with a processor's SHA instructions: 0.14 s more for a bundle of 43 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b, sha256
else:
    try:
        from _blake2 import blake2b

        try:
            from _sha2 import sha256  # its name since Python 3.12
        except ImportError:
            from _sha256 import sha256
    except ImportError:
        from hashlib import blake2b, sha256

__all__ = ["blake2b", "sha256"]
