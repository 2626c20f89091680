"""What a guest starts from: a kernel, its modules, and an initial file system with the agent.

The kernel is the distribution's own (`linux-image-cloud-amd64`), as the package installs it or as
`dpkg -x` unpacks it; nothing of the machine that runs it, such as a boot loader, is touched. The
initial file system is an archive in cpio's `newc` form (Documentation/driver-api/early-userspace).
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bedstone.errors import UnavailableError

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
MODULES: Final = ("virtio_mmio", "virtio_console", "virtio_blk", "erofs", "overlay", "virtio-rng")
"""In the order of loading, each after what it needs."""
NETWORK_MODULES: Final = ("virtio_net",)
SHARING_MODULES: Final = ("virtiofs",)

_NEEDS: Final = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and the folder of its modules, `lib/modules/VERSION/kernel`."""

    image: Path
    modules: Path


def find_agent() -> Path:
    """The agent's binary.

    Raises:
        UnavailableError: this installation has none.
    """
    given = os.environ.get("BEDSTONE_AGENT")
    path = Path(given) if given else Path(__file__).with_name("bedstone-agent")
    if not path.is_file():
        raise UnavailableError(
            f"the guest's agent is missing: {path}",
            hint="install Rust's cargo, then build it: sh agent/build.sh",
        )
    return path


def find_kernel(roots: Sequence[Path]) -> Kernel:
    """The newest kernel for guests below one of `roots`, the first that has any.

    Raises:
        UnavailableError: none has one.
    """
    for root in roots:
        images = sorted((root / "boot").glob("vmlinuz-*-cloud-amd64"), key=_version)
        for image in reversed(images):
            modules = root / "lib/modules" / image.name.removeprefix("vmlinuz-") / "kernel"
            if modules.is_dir():
                return Kernel(image, modules)
    raise UnavailableError(
        "there is no kernel for microVMs", hint=f"install the package {KERNEL_PACKAGE}"
    )


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def module_order(kernel: Kernel, names: Sequence[str]) -> list[Path]:
    """Files of the modules and of all that they need, each after what it needs.

    Raises:
        UnavailableError: the kernel lacks one.
    """
    known = {_module(path.name): path for path in kernel.modules.rglob("*.ko")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order:
            return
        path = known.get(name)
        if path is None:
            raise UnavailableError(f"the kernel {kernel.image.name} has no module {name}")
        for needed in dependencies(path.read_bytes()):
            add(_module(needed))
        order[name] = path

    for name in names:
        add(_module(name))
    return list(order.values())


def _module(name: str) -> str:
    return name.removesuffix(".ko").replace("-", "_")


def dependencies(module: bytes) -> list[str]:
    """Modules that one needs, from its `.modinfo`."""
    found = _NEEDS.search(module)
    return [name for name in found[1].decode().split(",") if name] if found else []


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive of folders and files: path to mode and content, in this order.

    Several archives one after the other are one to the kernel.
    """
    out = bytearray()
    for number, (name, (mode, content)) in enumerate(
        (*files.items(), ("TRAILER!!!", (0, b""))), start=1
    ):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4)
        out += content
        out += bytes(-len(out) % 4)
    return bytes(out)


def base_files(agent: bytes, modules: Sequence[Path]) -> dict[str, tuple[int, bytes]]:
    """What every guest of one kernel has in its initial file system."""
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o100755, agent),
        "modules": (0o040755, b""),
        "modules/order": (0o100644, "".join(f"{path.name}\n" for path in modules).encode()),
    }
    for path in modules:
        files[f"modules/{path.name}"] = (0o100644, strip(path.read_bytes()))
    return files


def strip(module: bytes) -> bytes:
    """A module without the signature at its end, which only that kernel's own build could check."""
    marker = b"~Module signature appended~\n"
    if not module.endswith(marker):
        return module
    (length,) = struct.unpack_from(">I", module, len(module) - len(marker) - 4)
    return module[: len(module) - len(marker) - 12 - int(length)]


def find_program(name: str, package: str) -> str:
    """A program's path.

    Raises:
        UnavailableError: it is not there; names the package.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise UnavailableError(f"{name} is missing", hint=f"install the package {package}")
    return path
