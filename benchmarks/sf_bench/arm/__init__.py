"""EMULATED ARM: a bundle's front end as an aarch64 process under QEMU, its instructions counted."""
