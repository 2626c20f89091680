"""QEMU: the command line of one machine.

The machine is `microvm`: no BIOS devices, no PCI, one serial port for the kernel's own messages. It
has no user-mode network, which would reach this machine's loopback interface. QEMU itself may start
no program and gain no privilege (`-sandbox`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PACKAGE: Final = "qemu-system-x86"
PROGRAM: Final = "qemu-system-x86_64"
PORTS: Final = 2
"""Connections at once, at first: one for the box's command, the others for all else. The guest
keeps 4 MiB for each port, so that more are added as they are needed."""
MOST_PORTS: Final = 30
RUN: Final = "run"
"""The folder in a box's that is QEMU's own: all else in there is not for it to change."""
CONSOLE: Final = f"{RUN}/console.log"
QMP: Final = f"{RUN}/qmp.sock"

# Translated code: by default QEMU keeps a gigabyte of it.
_TCG: Final = "tcg,thread=multi,tb-size=32"

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
        ports: that it starts with.
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
    ports: int = PORTS

    def argv(self, root: int, tap: int | None, shares: int | None, copy: int | None) -> list[str]:
        """The command line.

        Args:
            root: a descriptor that it inherits, as the others are: of the image.
            tap: of the network interface.
            shares: connected with virtiofsd.
            copy: of a file with the memory of another machine. It starts as a copy of that, whose
                state it is given by QMP, and keeps what it changes to itself.
        """
        kernel = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "random.trust_cpu=on"]
        if self.accelerator == "tcg":
            # This machine type has no other timer to measure the processor's counter with.
            kernel += ["no_timer_check", f"tsc_early_khz={self.tsc_kilohertz}"]
        argv = [self.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        # As a file, for virtiofsd, and for copies of the machine.
        memory = "memory-backend-memfd,share=on"
        if copy is not None:
            memory = f"memory-backend-file,share=off,mem-path=/proc/self/fd/{copy}"
            argv += ["-incoming", "defer"]
        argv += ["-object", f"{memory},id=memory,size={self.memory >> 20}M"]
        argv += ["-M", "microvm,acpi=on,rtc=on,memory-backend=memory"]
        argv += ["-m", f"{self.memory >> 20}M", "-global", "virtio-mmio.force-legacy=false"]
        argv += ["-accel", "kvm" if self.accelerator == "kvm" else _TCG]
        argv += ["-cpu", "host" if self.accelerator == "kvm" else "max", "-smp", str(self.cpus)]
        argv += ["-kernel", "kernel", "-initrd", "initrd", "-append", " ".join(kernel)]
        argv += ["-serial", f"file:{CONSOLE}", "-qmp", f"unix:{QMP},server=on,wait=off"]
        argv += ["-add-fd", f"fd={root},set=1"]
        argv += self._disk("root", "/dev/fdset/1", "readonly=on")
        if self.upper:
            argv += self._disk("upper", "upper", "cache=unsafe", "discard=unmap")
        argv += [
            "-device",
            "virtio-rng-device",
            "-device",
            f"virtio-serial-device,max_ports={MOST_PORTS + 1}",
        ]
        for number in range(1, self.ports + 1):
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
