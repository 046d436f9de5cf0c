"""The emulated processors: what QEMU emulates and what Linux would say about it in `/proc/cpuinfo`.

Both must agree. ONNX Runtime chooses its kernels by the features of the processor and by its part number in
`/proc/cpuinfo`, so a file of another processor ends in an illegal instruction; and the file of an x86 host, which the
emulator would show otherwise, crashes ONNX Runtime on import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import UsageError

CORES: Final = 4
_BASE: Final = "fp asimd evtstrm crc32 cpuid"
_V8_2: Final = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


class Profile(msgspec.Struct, frozen=True):
    """A kind of processor.

    Attributes:
        name: as given to `--profile`.
        board: where such a processor is found, for reading.
        qemu_cpu: value of QEMU's option `-cpu`.
        part, variant, revision: identity of the core, as in the register MIDR_EL1.
        features: as Linux names them.
    """

    name: str
    board: str
    qemu_cpu: str
    part: int
    variant: int
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """Content of `/proc/cpuinfo`."""
        return "".join(
            f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#05x}\n"
            f"CPU revision\t: {self.revision}\n\n"
            for core in range(CORES)
        )


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile("pi3", "Raspberry Pi 3, Zero 2 W: Cortex-A53", "cortex-a53", 0xD03, 0, 4, _BASE),
        Profile("pi4", "Raspberry Pi 4: Cortex-A72, no dot product", "cortex-a72", 0xD08, 0, 3, _BASE),
        Profile("pi5", "Raspberry Pi 5: Cortex-A76, dot product", "cortex-a76", 0xD0B, 4, 1, _V8_2),
        Profile("n1", "servers: Neoverse N1, dot product", "neoverse-n1", 0xD0C, 3, 1, f"{_V8_2} ssbs"),
        Profile("i8mm", "ARMv8.6 with i8mm, without SVE", "max,sve=off", 0xD0C, 3, 1, f"{_V8_2} ssbs i8mm bf16"),
    )
}
"""By name, slowest first. `i8mm` stands for newer phones and servers: QEMU's most capable processor, whose cores call
themselves Neoverse N1; ONNX Runtime sees i8mm in what the kernel reports."""


def choose_profiles(names: str) -> tuple[Profile, ...]:
    """`pi4,pi5` as profiles.

    Raises:
        UsageError: a name is unknown.
    """
    wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    unknown = [name for name in wanted if name not in PROFILES]
    if unknown:
        raise UsageError(f"--profile does not know {unknown[0]!r}", cure=f"choose from {', '.join(PROFILES)}")
    return tuple(PROFILES[name] for name in wanted)


def write_profile_root(root: Path, profile: Profile, *, system: Path) -> None:
    """Make the root folder that a profile's programs see: the folders of `system`, and the profile's own `/proc`, `/sys`."""
    root.mkdir(parents=True)
    for folder in sorted(system.iterdir()):
        if folder.name not in ("proc", "sys"):
            (root / folder.name).symlink_to(folder)
    cores = f"0-{CORES - 1}"
    processors = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": profile.cpuinfo, f"{processors}/kernel_max": str(CORES - 1)}
    files |= {f"{processors}/{name}": cores for name in ("possible", "present", "online")}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="ascii")


def described(profiles: Sequence[Profile]) -> str:
    """Names and boards, one per line, for help texts."""
    return "\n".join(f"  {profile.name:5} {profile.board}" for profile in profiles)
