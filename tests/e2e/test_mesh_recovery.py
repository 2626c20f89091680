"""What keeps going when parts of the mesh do not: the control plane's absence and return."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from bedstone.control.mesh.names import Type
from bedstone.control.mesh.streams import Response
from bedstone.model.resources import Address, Phase
from bedstone.model.spec import AppSpec, Gateway, Route, WorkloadSpec
from bedstone.server import ads as ads_module
from bedstone.testing.mesh import HOST, MeshRig, free_port
from bedstone.testing.mesh_programs import answer, client, program, run
from bedstone.testing.processes import until


async def more(statuses: list[int]) -> None:
    """Wait until fifty more requests were answered."""
    enough = len(statuses) + 50
    await until(lambda: len(statuses) >= enough)


async def ok(head: str, writer: asyncio.StreamWriter) -> None:
    answer(writer, "ok")


def declare(rig: MeshRig, gateway: int | None = None) -> None:
    workloads = {
        "web": WorkloadSpec(command=("unused",), uses=("risk",)),
        "risk": WorkloadSpec(command=("unused",)),
    }
    routed = Gateway(port=gateway, routes=(Route(to="web"),)) if gateway else None
    rig.declare(AppSpec(app="bank", workloads=workloads, gateway=routed))


def test_control_plane_returns_and_sends_only_what_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Response] = []
    write = ads_module._write_delta

    def recorded(response: Response) -> bytes:
        sent.append(response)
        return write(response)

    monkeypatch.setattr(ads_module, "_write_delta", recorded)

    async def scenario(rig: MeshRig) -> None:
        async with program(ok) as port:
            declare(rig)
            web = rig.add("bank", "web", "w1", port)
            risk = rig.add("bank", "risk", "r1", port)
            await rig.settle()
            statuses: list[int] = []
            stop = asyncio.Event()

            async def load() -> None:
                async with client(web) as http:
                    while not stop.is_set():
                        statuses.append((await http.post("http://risk/")).status_code)
                        await asyncio.sleep(0.002)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load())
                await more(statuses)
                await rig.stop_control()
                await more(statuses)
                sent.clear()
                # it begins with an incomplete view, which must take nothing away
                rig.mesh.hold()
                await rig.start_control()
                async with asyncio.timeout(5):
                    while not rig.ads.proxies():
                        await rig.ads.progressed()
                await asyncio.sleep(0.3)
                assert sent == []
                rig.mesh.apply(rig.known())
                rig.mesh.release()
                await rig.settle()
                assert [name for r in sent for name, _ in r.resources] == []
                assert [name for r in sent for name in r.removed] == []
                second = rig.add("bank", "risk", "r2", port)
                rig.update(risk, phase=Phase.STOPPED)
                assert await rig.ads.settled("bank", "risk", 20)
                assert rig.mesh.endpoints("bank", "risk").keys() == {second.name}
                await more(statuses)
                stop.set()
            changed = {r.kind for r in sent if r.resources}
            assert changed == {Type.LDS, Type.RDS, Type.CDS, Type.EDS}
            assert set(statuses) == {200}

    run(scenario)


def test_drain_leaves_no_request_behind() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program(ok) as port, program(ok) as other:
            declare(rig)
            web = rig.add("bank", "web", "w1", port)
            rig.add("bank", "risk", "stays", port)
            leaves = rig.add("bank", "risk", "leaves", other)
            await rig.settle()
            statuses: list[int] = []
            stop = asyncio.Event()

            async def load() -> None:
                async with client(web) as http:
                    while not stop.is_set():
                        statuses.append((await http.post("http://risk/")).status_code)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(load())
                await more(statuses)
                rig.drain(leaves)
                assert await rig.ads.settled("bank", "risk", 20)
                rig.update(leaves, phase=Phase.STOPPED)
                await more(statuses)
                stop.set()
            assert set(statuses) == {200}

    run(scenario)


def test_settled_is_bounded_when_a_proxy_does_not_answer() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program(ok) as port:
            declare(rig)
            rig.add("bank", "web", "w1", port)
            risk = rig.add("bank", "risk", "r1", port)
            await rig.settle()
            assert rig.envoy is not None
            os.kill(rig.envoy.pid, 19)  # SIGSTOP
            try:
                rig.drain(risk)
                start = time.monotonic()
                assert not await rig.ads.settled("bank", "risk", 0.5)
                assert time.monotonic() - start < 15
            finally:
                os.kill(rig.envoy.pid, 18)  # SIGCONT
            assert await rig.ads.settled("bank", "risk", 20)

    run(scenario)


def test_websocket_passes_from_the_gateway_and_between_workloads() -> None:
    async def scenario(rig: MeshRig) -> None:
        async with program(ok) as port:
            gateway = free_port()
            declare(rig, gateway)
            web = rig.add("bank", "web", "w1", port, services=["risk"])
            rig.add("bank", "risk", "r1", port)
            await rig.settle()
            assert web.plumbing is not None
            for at in (gateway, web.plumbing.services["risk"].port):
                reader, writer = await asyncio.open_connection(HOST, at)
                writer.write(
                    b"GET /chat HTTP/1.1\r\nhost: risk\r\nconnection: Upgrade\r\n"
                    b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 101 ")
                writer.write(b"hello")
                assert await asyncio.wait_for(reader.read(100), 5) == b"HELLO"
                writer.close()
                await writer.wait_closed()

    run(scenario)


@pytest.fixture
def namespace() -> Iterator[str]:
    """The path of a network namespace with loopback."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2: run as root, `apt install iproute2`")
    name = f"bs-test-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot make a network namespace: {made.stderr.decode().strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield f"/var/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_instance_inside_a_network_namespace(namespace: str) -> None:
    """The proxy listens inside it and dials into it; nothing else leads there."""

    async def scenario(rig: MeshRig) -> None:
        script = (
            "import http.server as h\n"
            "class H(h.BaseHTTPRequestHandler):\n"
            "    def do_GET(self):\n"
            "        self.send_response(200); self.end_headers(); self.wfile.write(b'inside')\n"
            "h.HTTPServer(('127.0.0.1', 8000), H).serve_forever()\n"
        )
        enter = ("ip", "netns", "exec", namespace.rpartition("/")[2])
        inside = await asyncio.create_subprocess_exec(
            *enter, "python3", "-c", script, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            declare(rig, gateway := free_port())
            status = rig.add("bank", "web", "w1", 8000)
            assert status.plumbing is not None
            plumbing = status.plumbing.model_copy(
                update={
                    "app": Address(host=HOST, port=8000, netns=namespace),
                    "outbound": Address(host=HOST, port=8001, netns=namespace),
                    "services": {"risk": Address(host=HOST, port=8002, netns=namespace)},
                }
            )
            changed = status.model_copy(update={"plumbing": plumbing})
            async with program(ok) as port:
                rig.add("bank", "risk", "r1", port)
                rig.statuses.pop(status.path)
                rig.mesh.apply([changed])
                await rig.settle()
                async with httpx.AsyncClient() as http:
                    async with asyncio.timeout(10):
                        while (reply := await http.get(f"http://{HOST}:{gateway}/")).is_error:  # noqa: ASYNC110 - asks the proxy
                            await asyncio.sleep(0.05)
                assert reply.text == "inside"
                for url in ("http://risk/", f"http://{HOST}:8002/"):
                    proxy = "http://127.0.0.1:8001" if "risk" in url else ""
                    curl = await asyncio.create_subprocess_exec(
                        *enter,
                        *("curl", "-s", "--noproxy", "" if proxy else "*", "-x", proxy, url),
                        stdout=asyncio.subprocess.PIPE,
                    )
                    output, _ = await curl.communicate()
                    assert output == b"ok"
        finally:
            inside.kill()
            await inside.wait()

    run(scenario)
