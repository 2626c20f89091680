"""What the console's pages cost a server that runs many workloads: milliseconds an answer, by page.

An app of `--workloads` is put into a store, with as many instances, their statuses, and their
series second by second; nobody runs. Then each page's endpoint is asked through the HTTP API, once
in each new second (it is computed then) and again in the same one (it is not). The baseline is the
answer of `/healthz` in the same process.

    python benchmarks/console.py [--workloads 500] [--seconds 20]

Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from bedstone.control.loop import ControlLoop
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.control.scheduling import revision_name
from bedstone.model.api import ApplyRequest
from bedstone.model.resources import App, Instance, InstanceStatus, Node, Phase, Presence
from bedstone.model.spec import AppSpec
from bedstone.server.api import build_api
from bedstone.server.changes import Changes
from bedstone.server.console_views import ConsoleViews
from bedstone.store import Put, open_store
from bedstone.telemetry import names
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series

PAGES = {
    "liveness": "/healthz",
    "overview": "/v1/overview",
    "workloads": "/v1/workloads",
    "workload": "/v1/apps/fleet/workloads/w007",
    "map": "/v1/apps/fleet/graph",
    "map, a past minute": "/v1/apps/fleet/graph?window=60",
    "traffic": "/v1/apps/fleet/traffic",
    "changes": "/v1/changes",
}


def spec(count: int) -> AppSpec:
    """A chain of workloads, each of which calls the next."""
    workloads = {
        f"w{number:03d}": {
            "command": ["true"],
            "uses": [f"w{number + 1:03d}"] if number + 1 < count else [],
        }
        for number in range(count)
    }
    gateway = {"port": 8080, "routes": [{"path": "/", "to": "w000"}]}
    return AppSpec.model_validate({"app": "fleet", "workloads": workloads, "gateway": gateway})


def series_of(instance: Instance, following: str | None) -> list[Series]:
    """What one instance's proxy, and its machine, say of it."""
    own = {
        "app": instance.app,
        "cell": instance.cell,
        "workload": instance.workload,
        "revision": instance.revision,
        "instance": instance.name,
        "node": instance.node,
    }
    edge = {
        "app": instance.app,
        "cell": instance.cell,
        "caller": instance.workload,
        "callee": following or "",
        "node": instance.node,
    }
    bounds = [*(str(ms / 1000) for ms in names.BUCKETS), "+Inf"]
    found = [names.REQUESTS.series("envoy", **own, code=code) for code in ("2xx", "4xx", "5xx")]
    found += [
        names.REQUEST_ERRORS.series("envoy", **own, kind=kind) for kind in ("answer", "timeout")
    ]
    found += [
        metric.series("envoy", **own)
        for metric in (names.INSTANCE_CPU, names.INSTANCE_MEMORY, names.REQUESTS_ACTIVE)
    ]
    kinds = [(names.REQUEST_SECONDS.name, own)]
    if following:
        found.append(names.EDGE_REQUESTS.series("envoy", **edge, code="2xx"))
        kinds.append((names.EDGE_SECONDS.name, edge))
    for name, labels in kinds:
        for bound in bounds:
            pairs = tuple(sorted({**labels, "le": bound}.items()))
            found.append(Series(f"{name}_bucket", pairs, "counter", "envoy"))
    return found


class Fleet:
    """A store full of workloads, and what their node says each second."""

    def __init__(self, count: int, folder: Path) -> None:
        self.spec = spec(count)
        self.series = SeriesStore(folder / "metrics.sqlite")
        self._builder = FrameBuilder()
        self._values: dict[Series, float] = {}
        self._second = int(time.time()) - 120

    def place(self) -> list[Put]:
        """The node, and an instance of each workload, ready."""
        app = App(name="fleet", spec=self.spec, generation=1)
        node = Node(name="n1", address="127.0.0.1", proxy=Phase.READY)
        found: list[Any] = [node, Presence(node="n1")]
        following = [*list(self.spec.workloads)[1:], None]
        for workload, after in zip(self.spec.workloads, following, strict=True):
            revision = revision_name(app, workload)
            name = f"{workload}-{revision}-0"
            instance = Instance(
                app="fleet", workload=workload, name=name, node="n1", revision=revision
            )
            status = InstanceStatus(
                **instance.model_dump(exclude={"desired", "released"}), phase=Phase.READY
            )
            found += [instance, status]
            self._values |= dict.fromkeys(series_of(instance, after), 0.0)
        return [Put(resource.key, resource.encode()) for resource in found]

    def tick(self) -> None:
        """One more second, in which everybody was asked something."""
        self._second += 1
        for series in self._values:
            failed = series.name == names.REQUEST_ERRORS.name or ("code", "5xx") in series.labels
            step = 0 if failed else random.randint(0, 9)
            self._values[series] = step if series.kind == "gauge" else self._values[series] + step
        frame = self._builder.build(self._second, self._values, {"envoy": "1"}, {})
        self.series.ingest("n1", frame)
        self.series.finish(self._second, {})

    @property
    def count(self) -> int:
        """How many series there are."""
        return len(self._values)


async def milliseconds(client: httpx.AsyncClient, path: str) -> tuple[float, float, int]:
    """How long an answer took, the processor's time of it, and its size."""
    began, worked = time.perf_counter(), time.process_time()
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    took, work = time.perf_counter() - began, time.process_time() - worked
    return took * 1000, work * 1000, len(answer.content)


async def measure(fleet: Fleet, api: FastAPI, seconds: int) -> dict[str, Any]:
    """The medians of each page, computed and again."""

    async def local(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "client": ("local:0", 0)}, receive, send)

    transport = httpx.ASGITransport(app=local)
    result: dict[str, Any] = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        for name, path in PAGES.items():
            first, work, again, size = [], [], [], 0
            for _ in range(seconds):
                fleet.tick()
                took, worked, size = await milliseconds(client, path)
                first.append(took)
                work.append(worked)
                took, _, size = await milliseconds(client, path)
                again.append(took)
            result[name] = {
                "ms": round(statistics.median(first), 1),
                "ms_worst": round(max(first[1:] or first), 1),
                "cpu_ms": round(statistics.median(work), 1),
                "ms_again": round(statistics.median(again), 1),
                "bytes": size,
            }
    return result


async def main(arguments: argparse.Namespace) -> None:
    """Fill, ask, print."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(arguments.workloads, Path(folder))
        async with open_store("memory://") as store:
            loop = ControlLoop(store, [])
            following = asyncio.create_task(loop.run())
            await loop.loaded()
            changes = Changes(store, loop)
            await changes.apply("fleet", ApplyRequest(spec=fleet.spec), "benchmark")
            await loop.reached(await store.commit(fleet.place()))
            with fleet.series:
                for _ in range(70):
                    fleet.tick()
                views = ConsoleViews(loop, fleet.series, changes, "benchmark.internal")
                nothing = cast("Any", None)
                api = build_api(store, nothing, changes, nothing, more=(views.add_routes,))
                pages = await measure(fleet, api, arguments.seconds)
            following.cancel()
    result = {"workloads": arguments.workloads, "series": fleet.count, "pages": pages}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    asyncio.run(main(parser.parse_args()))
