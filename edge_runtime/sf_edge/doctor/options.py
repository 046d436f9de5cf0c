"""What `sf-edge doctor --help` says: light, since every command line is parsed with it."""

from __future__ import annotations

from typing import Final

DESCRIPTION: Final = """\
Would sf-edge run with these options work here, and if not, what is wrong and what helps?
Everything that it needs is looked at, in the order in which it is needed: bundle, signature, self-test, data, outbox, disk,
governor, keys, host name, TCP, handshake, the server's verdict, clock. What depends on something that failed is skipped,
and says so; so is what was not given. Nothing is changed: no outbox is made, no row is read into it, and the server is asked
whether it would let this device in, keeps nothing of that, and goes on with a session that this device has already."""

EPILOG: Final = """\
the states: ok; warning (sf-edge run works, but you should know); failed, with its cure; skipped, with the reason.

exit code: 0 when nothing failed, else that of the first failure, the same as sf-edge run would end with: 2 options and keys,
12 data, 13 bundle, 14 mismatch, 16 server not reached, 17 refused, 19 disk full, 22 outbox, 24 self-test, 25 not trusted,
26 key not authorized, 27 wrong server. docs/operations.md has them all.

examples:
  sf-edge doctor --config edge.toml                                   the settings of the service: first thing when it fails
  sf-edge doctor --bundle bundle/ --server tcp://lab:5555 --server-key 5e1f... --device pi-3 --data private.jsonl
  sf-edge doctor --server tcp://lab:5555 --server-key 5e1f...         only the way to the server
  sf-edge doctor --bundle bundle/                                     only this machine
  sf-edge doctor --config edge.toml --json                            for another program

Run it as the user whom the service runs as: home folder, key and outbox are that user's."""
