"""What the device and the server must agree on: messages, frames, manifest, activation codec, errors, settings."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("splitfrozen")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"

SOFTWARE = f"splitfrozen {__version__}"
