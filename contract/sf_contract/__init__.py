"""What the device and the server must agree on: messages, frames, manifest, activation codec, errors, settings."""

__version__ = "0.1.0"
"""Written here alone; the build reads it. Asking the installed packages instead takes longer than the rest of `--version`."""

SOFTWARE = f"splitfrozen {__version__}"
