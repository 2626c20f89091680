"""What a driver can do with boxes. Drivers are chosen by the name that `isolation:` gives.

Rules:
- Whoever starts a box parents it: `prepare` writes what is needed and answers with a command that
  runs in the foreground and ends as the box's own command does. The supervisor runs it for
  workloads, a small shim for stand-alone boxes.
- What a driver cannot apply it says, in `Launch.notes`; it never pretends.
- `delete` gives everything back, wherever a start was cut off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

from bedstone.drivers import Kind
from bedstone.sandbox.box import BoxInfo, BoxSpec, Exec, Exit, Launch, Link, Stats, Stdio


class Running(Protocol):
    """A program started by `exec`."""

    async def wait(self) -> Exit:
        """Its end; may be awaited many times."""
        ...

    async def signal(self, number: int) -> None:
        """Signal it; nothing happens when it has ended."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now; nothing happens without a terminal."""
        ...


class Boxes(Protocol):
    """One kind of isolation on one machine; constructed with its home directory.

    Operations on an id that is not there raise NotFoundError, on a box that does not run
    ConflictError. Different boxes never wait for each other.
    """

    @property
    def isolation(self) -> str:
        """Its name in `isolation:`."""
        ...

    async def open(self) -> None:
        """Find out by running something what this machine allows. Called once, first.

        Raises:
            UnavailableError: it cannot work here; names the package or setting that is missing.
        """
        ...

    async def link(self, netns: str) -> Link:
        """Make the network between a namespace and one box that will be given it.

        `Link.namespace` can be listened on from then on, before the box is there, and also while
        the box starts again. Nothing but the namespace is reached from the box. What is made goes
        with the namespace. Idempotent.

        Args:
            netns: path of the namespace, as in `BoxSpec.netns`.

        Raises:
            NotFoundError: no namespace is there.
            UnavailableError: it cannot be made here.
        """
        ...

    async def prepare(self, spec: BoxSpec) -> Launch:
        """Check the policy and write what the box needs. Idempotent for one specification.

        Raises:
            DeniedError: the policy refuses; names the field.
            InvalidError: it can never run so.
            ConflictError: the id is another box's.
            UnavailableError: not now; nothing of it is left.
        """
        ...

    async def exec(self, box: str, program: Exec, stdio: Stdio) -> Running:
        """Run one more program in a running box.

        One that cannot be started ends with the status that `failing` has for it, and its error
        output says why.

        Raises:
            DeniedError: the policy refuses; names the field.
        """
        ...

    async def signal(self, box: str, number: int) -> None:
        """Signal the box's command."""
        ...

    async def pause(self, box: str) -> None:
        """Let nothing in it run. Idempotent."""
        ...

    async def resume(self, box: str) -> None:
        """Let it run again. Idempotent."""
        ...

    async def stats(self, box: str) -> Stats:
        """What it uses."""
        ...

    async def copy_in(self, box: str, folder: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into a folder of a running box, as its root user sees paths.

        No name and no symbolic link in the archive or the box leads out of the box, whatever
        changes meanwhile. What was unpacked before an error stays.

        Raises:
            DeniedError: the policy refuses.
            NotFoundError: the folder is not there, or is none.
            InvalidError: not a tar archive, or one with members that cannot be there.
        """
        ...

    def copy_out(self, box: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file or folder of a running box, named by its last component.

        Raises:
            DeniedError: the policy refuses.
            NotFoundError: nothing is there.
        """
        ...

    async def delete(self, box: str) -> None:
        """End it at once and give everything back: processes, mounts, groups, files.

        Idempotent, also after a start that failed or was cut off anywhere.
        """
        ...

    async def list(self) -> list[BoxInfo]:
        """Every box that was prepared and not deleted, sorted by id."""
        ...


@runtime_checkable
class Endings(Protocol):
    """Optional: boxes of which something is known once they have ended."""

    async def spent(self, box: str) -> Stats:
        """What a box that is not deleted used in all; None of what nobody knows any more."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """Optional: boxes whose memory and processes can be kept."""

    async def snapshot(self, box: str, folder: str) -> None:
        """Write a running box, with memory, processes and disk, to an empty folder.

        The box stands still meanwhile, and runs on. Programs that `exec` started are not kept.

        Raises:
            InvalidError: it has what cannot be kept, such as mounts of this machine.
            UnavailableError: it cannot be written.
        """
        ...

    async def restore(self, folder: str, spec: BoxSpec) -> Launch:
        """Prepare a box whose first start goes on where a snapshot was taken.

        It is the same but for its id, network namespace, labels and time of making: what its
        programs know of themselves is as it was. Before they go on they have this machine's time
        and a random pool of their own; generators that programs have seeded themselves are theirs
        to seed again. When it has ended, a start begins its command anew. A snapshot is not
        changed, and may be gone on from many times, also after its box is deleted.

        Raises:
            DeniedError: the policy refuses; names the field.
            InvalidError: no snapshot is there, or the box would be another; names the field.
            ConflictError: the id is another box's.
            UnavailableError: not now; nothing of it is left.
        """
        ...


@runtime_checkable
class Forks(Protocol):
    """Optional: boxes that can be multiplied while they run."""

    async def fork_many(self, box: str, specs: Sequence[BoxSpec]) -> list[Launch]:
        """Copies of a running box, as `Snapshots.restore` makes them: all or none.

        What copies do not change of their memory they have once, together.
        """
        ...


KIND: Kind[Boxes] = Kind(
    "boxes",
    {
        "container": "bedstone.sandbox.oci.driver:ContainerBoxes",
        "gvisor": "bedstone.sandbox.oci.driver:GvisorBoxes",
        "microvm": "bedstone.sandbox.microvm.driver:MicrovmBoxes",
    },
)
"""Boxes by the name that `isolation:` gives them; each is constructed with a home directory."""
