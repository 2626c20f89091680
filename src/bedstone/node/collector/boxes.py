"""What instances in boxes use, as their boxes tell: what counts for their limits.

The processes of a virtual machine are read as any others: they are what it costs this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from bedstone.errors import Error
from bedstone.model.resources import Instance, InstanceStatus
from bedstone.node.collector.reading import Reading
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.box import Stats
from bedstone.telemetry import names

TOLD_BY_BOXES: Final = ("container", "gvisor")
TIMEOUT: Final = 0.5

Ask = Callable[[str, Instance], Awaitable[Stats | None]]
"""What an instance in a box of an isolation uses."""


class BoxStatistics:
    """A source of the collector.

    Args:
        node: the node's name.
        statuses: of all instances here.
        processes: the supervisor's, by name.
        ask: the sandbox of an isolation.
    """

    def __init__(
        self,
        node: str,
        statuses: Callable[[], Iterable[InstanceStatus]],
        processes: Mapping[str, ProcessInfo],
        ask: Ask,
    ) -> None:
        self._node = node
        self._statuses = statuses
        self._processes = processes
        self._ask = ask

    async def read(self) -> Reading:
        """What they use now; what does not answer in time is named as missing."""
        reading = Reading()
        await asyncio.gather(
            *(
                self._read(reading, status)
                for status in self._statuses()
                if status.isolation in TOLD_BY_BOXES
            )
        )
        return reading

    async def _read(self, reading: Reading, status: InstanceStatus) -> None:
        source = f"instance/{status.path}"
        info = self._processes.get(source)
        if info is None or not info.running:
            return
        try:
            async with asyncio.timeout(TIMEOUT):
                used = await self._ask(status.isolation, _instance(status))
        except (Error, TimeoutError) as error:
            reason = error.message if isinstance(error, Error) else "it does not answer"
            reading.missing[source] = reason
            return
        if used is None or used.cpu_seconds is None or used.memory is None:
            reading.missing[source] = "no control group says what its box uses"
            return
        labels = {
            "app": status.app,
            "cell": status.cell,
            "workload": status.workload,
            "revision": status.revision,
            "instance": status.name,
            "node": self._node,
        }
        reading.incarnations[source] = f"{info.pid}:{info.start_time}"
        reading.values[names.INSTANCE_CPU.series(source, **labels)] = used.cpu_seconds
        reading.values[names.INSTANCE_MEMORY.series(source, **labels)] = float(used.memory)


def _instance(status: InstanceStatus) -> Instance:
    return Instance(
        app=status.app,
        cell=status.cell,
        workload=status.workload,
        name=status.name,
        revision=status.revision,
        node=status.node,
    )
