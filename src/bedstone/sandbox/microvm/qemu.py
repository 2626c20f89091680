"""QEMU: the command line of one machine, and the few words of QMP that are needed.

The machine is `microvm`: no BIOS devices, no PCI, one serial port for the kernel's own messages. It
has no user-mode network, which would reach this machine's loopback interface. QEMU itself may start
no program and gain no privilege (`-sandbox`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bedstone.errors import UnavailableError

PACKAGE: Final = "qemu-system-x86"
PROGRAM: Final = "qemu-system-x86_64"
PORTS: Final = 8
"""Connections at once: one for the box's command, the others for `exec`, copies and statistics."""
RUN: Final = "run"
"""The folder in a box's that is QEMU's own: all else in there is not for it to change."""
CONSOLE: Final = f"{RUN}/console.log"
QMP: Final = f"{RUN}/qmp.sock"

Accelerator = Literal["kvm", "tcg"]


def port_socket(number: int) -> str:
    """The name of a port's socket in the box's folder; ports count from 1."""
    return f"{RUN}/port{number}.sock"


@dataclass(frozen=True, slots=True)
class Machine:
    """One virtual machine. Files are names in its folder, which is QEMU's working directory.

    Args:
        program: QEMU.
        accelerator: `kvm`, or `tcg`: emulated.
        memory: bytes.
        cpus: whole processors.
        tsc_kilohertz: of this machine's counter, which an emulated guest cannot measure.
        upper: whether there is a disk for writes.
        mac: of the network interface; None is no interface.
        io_read: bytes a second from disks.
        io_write: bytes a second to disks.
    """

    program: str
    accelerator: Accelerator
    memory: int
    cpus: int = 1
    tsc_kilohertz: int = 0
    upper: bool = True
    mac: str | None = None
    io_read: int | None = None
    io_write: int | None = None

    def argv(self, root: int, tap: int | None, shares: int | None = None) -> list[str]:
        """The command line.

        Args:
            root: a descriptor that it inherits, as the others are: of the image.
            tap: of the network interface.
            shares: connected with virtiofsd.
        """
        kernel = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on"]
        if self.accelerator == "tcg":
            # This machine type has no other timer to measure the processor's counter with.
            kernel += ["no_timer_check", f"tsc_early_khz={self.tsc_kilohertz}"]
        argv = [self.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        # virtiofsd reads and writes in the guest's memory.
        memory = "memory-backend-memfd,share=on" if shares is not None else "memory-backend-ram"
        argv += ["-object", f"{memory},id=memory,size={self.memory >> 20}M"]
        argv += ["-M", "microvm,acpi=on,rtc=on,memory-backend=memory"]
        argv += ["-m", f"{self.memory >> 20}M", "-global", "virtio-mmio.force-legacy=false"]
        argv += ["-accel", "kvm" if self.accelerator == "kvm" else "tcg,thread=multi"]
        argv += ["-cpu", "host" if self.accelerator == "kvm" else "max", "-smp", str(self.cpus)]
        argv += ["-kernel", "kernel", "-initrd", "initrd", "-append", " ".join(kernel)]
        argv += ["-serial", f"file:{CONSOLE}", "-qmp", f"unix:{QMP},server=on,wait=off"]
        argv += ["-add-fd", f"fd={root},set=1"]
        argv += self._disk("root", "/dev/fdset/1", "readonly=on")
        if self.upper:
            argv += self._disk("upper", "upper", "cache=unsafe", "discard=unmap")
        argv += ["-device", "virtio-rng-device", "-device", "virtio-serial-device,max_ports=31"]
        for number in range(1, PORTS + 1):
            path = port_socket(number)
            argv += ["-chardev", f"socket,id=port{number},path={path},server=on,wait=off"]
            argv += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
        if tap is not None:
            argv += ["-netdev", f"tap,id=net,fd={tap}"]
            argv += ["-device", f"virtio-net-device,netdev=net,mac={self.mac}"]
        if shares is not None:
            argv += ["-chardev", f"socket,id=shares,fd={shares}"]
            argv += ["-device", "vhost-user-fs-device,chardev=shares,tag=shares"]
        argv += ["-sandbox"]
        argv += ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        return argv

    def _disk(self, name: str, path: str, *options: str) -> list[str]:
        drive = [f"id={name}", f"file={path}", "format=raw", "if=none", *options]
        if self.io_read:
            drive.append(f"throttling.bps-read={self.io_read}")
        if self.io_write and "readonly=on" not in options:
            drive.append(f"throttling.bps-write={self.io_write}")
        return ["-drive", ",".join(drive), "-device", f"virtio-blk-device,drive={name}"]


async def qmp(folder: Path, commands: Sequence[str], patience: float = 10.0) -> list[Any]:
    """Run QMP commands without arguments, and give what each returns.

    Raises:
        UnavailableError: QEMU does not answer, or refuses.
    """
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_unix_connection(
                f"/proc/self/fd/{descriptor}/{QMP}", limit=1 << 20
            )
            try:
                await reader.readline()  # the greeting
                results = []
                for command in ("qmp_capabilities", *commands):
                    writer.write(json.dumps({"execute": command}).encode() + b"\n")
                    results.append(await _answer(reader, command))
                return results[1:]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        raise UnavailableError(f"QEMU does not answer: {str(error) or 'in time'}") from error
    finally:
        os.close(descriptor)


async def _answer(reader: asyncio.StreamReader, command: str) -> Any:
    while True:
        line = await reader.readline()
        if not line:
            raise UnavailableError(f"QEMU ended at {command}")
        value = json.loads(line)
        if "error" in value:
            raise UnavailableError(f"QEMU refused {command}: {value['error'].get('desc')}")
        if "return" in value:
            return value["return"]
