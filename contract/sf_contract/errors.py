"""Every failure SplitFrozen reports to a person, with its exit code.

    SplitFrozenError
    |- UsageError            2   an option, a setting or a combination of them
    |- ModelError           10   the base model cannot be found, read or cut
    |- SplitLayerError      11   the cut lies outside the model
    |- DataError            12   a data file cannot be read, or holds nothing usable
    |- BundleError          13   a bundle is damaged, tampered with or from another format version
    |- MismatchError        14   two things do not belong together (bundle and model, adapter and base, run and settings)
    |- ErrorBudgetExceeded  15   quantization costs more than --max-error allows
    |- ServerUnreachable    16   nobody answers at the server's address
    |- RefusedByServer      17   the server answered, and said no for good
    |- AddressInUse         18   another program holds the port
    |- DiskFull             19   no room left; nothing that was confirmed is lost
    |- AlreadyRunning       20   another process holds the outbox or the run folder
    |- MalformedMessage     21   bytes from the other side are not a message of this protocol
    |- StoreError           22   an outbox or store file cannot be used
    |- TrainingFailed       23   training cannot go on (non-finite loss, a process that keeps crashing)
    |- SelfTestFailed       24   this machine computes the bundle's test vectors differently
    |- UntrustedBundle      25   a bundle is whole, but nobody on the trust list signed it
    |- NotAuthorised        26   the server does not know this device's key
    `- WrongServerKey       27   what answers at the address is not the server whose key was given

An error says what happened, where, what was expected and what was found; `cure` says what to do about it.
"""

from __future__ import annotations

from typing import Final

MAX_SHOWN: Final = 2_000


class SplitFrozenError(Exception):
    """A failure with a cause a person can act on.

    Args:
        what: one sentence: what happened, where, what was expected and found. It may quote what came from outside, so
            no more than `MAX_SHOWN` characters are kept.
        cure: one sentence in the imperative: what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, cure: str) -> None:
        self.what = what if len(what) <= MAX_SHOWN else f"{what[:MAX_SHOWN]}..."
        self.cure = cure
        super().__init__(self.what)

    def one_line(self) -> str:
        """The error as the single line a command prints."""
        return f"{one_line(self.what)}. Cure: {one_line(self.cure)}."


def one_line(text: str) -> str:
    """White space as single blanks, what a terminal would obey (names of files may hold it) written out, no stop at the end."""
    shown = " ".join(text.split()).rstrip(".")
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in shown)


class UsageError(SplitFrozenError):
    """An option, a setting or a combination of them cannot be used."""

    exit_code = 2


class ModelError(SplitFrozenError):
    """The base model cannot be found, read or cut."""

    exit_code = 10


class SplitLayerError(SplitFrozenError):
    """The cut lies outside the model."""

    exit_code = 11


class DataError(SplitFrozenError):
    """A data file cannot be read, or holds nothing usable."""

    exit_code = 12


class BundleError(SplitFrozenError):
    """A bundle is damaged, tampered with or from another format version."""

    exit_code = 13


class MismatchError(SplitFrozenError):
    """Two things do not belong together."""

    exit_code = 14


class ErrorBudgetExceeded(SplitFrozenError):
    """Quantization costs more than `--max-error` allows."""

    exit_code = 15


class ServerUnreachable(SplitFrozenError):
    """Nobody answers at the server's address."""

    exit_code = 16


class RefusedByServer(SplitFrozenError):
    """The server answered, and said no for good."""

    exit_code = 17


class AddressInUse(SplitFrozenError):
    """Another program holds the port."""

    exit_code = 18


class DiskFull(SplitFrozenError):
    """No room left; nothing that was confirmed is lost."""

    exit_code = 19


class AlreadyRunning(SplitFrozenError):
    """Another process holds the outbox or the run folder."""

    exit_code = 20


class MalformedMessage(SplitFrozenError):
    """Bytes from the other side are not a message of this protocol."""

    exit_code = 21

    def __init__(self, what: str, *, cure: str = "run the same SplitFrozen version on both ends") -> None:
        super().__init__(what, cure=cure)


class StoreError(SplitFrozenError):
    """An outbox or store file cannot be used."""

    exit_code = 22


class TrainingFailed(SplitFrozenError):
    """Training cannot go on."""

    exit_code = 23


class SelfTestFailed(SplitFrozenError):
    """This machine computes the bundle's test vectors differently."""

    exit_code = 24


class UntrustedBundle(SplitFrozenError):
    """A bundle is whole, but nobody on the trust list signed it."""

    exit_code = 25


class NotAuthorised(SplitFrozenError):
    """The server does not know this device's key."""

    exit_code = 26


class WrongServerKey(SplitFrozenError):
    """What answers at the address is not the server whose key was given, or encrypts where this side does not."""

    exit_code = 27


EXIT_CODES: Final = frozenset(kind.exit_code for kind in SplitFrozenError.__subclasses__())
"""Exit codes that tell a kind of failure."""
