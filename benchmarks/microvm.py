"""A microVM: the agent's size, time to the first output, `exec` in a running box, memory.

python benchmarks/microvm.py [RUNS]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bedstone.sandbox.box import BoxSpec, Exec, Stdio
from bedstone.sandbox.microvm import guest
from bedstone.sandbox.microvm.driver import MicrovmBoxes
from bedstone.sandbox.policy import ANY_USER, Policy
from bedstone.testing.box_programs import make_root

OPEN = Policy(programs=("*",), exec=True, env=("*",), users=(ANY_USER,), writable_root=True)


def memory(path: Path, *names: str) -> dict[str, int]:
    """KiB of lines such as `Pss:  12 kB`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) for words in lines if words[0][:-1] in names}


def agent_alone(folder: Path) -> dict[str, int]:
    """The agent as an ordinary process that waits."""
    config = folder / "config.json"
    config.write_text(json.dumps({"version": 1, "policy": None}))
    socket = folder / "agent.sock"
    argv = [str(guest.find_agent()), "--listen", str(socket), "--config", str(config)]
    process = subprocess.Popen(argv)
    try:
        while not socket.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        found = memory(Path(f"/proc/{process.pid}/smaps_rollup"), "Rss", "Anonymous")
    finally:
        process.kill()
        process.wait()
    return found


async def run(boxes: MicrovmBoxes, root: Path, runs: int) -> None:
    prepared, first, execs, pss = [], [], [], []
    for number in range(runs):
        command = ("/bin/sh", "-c", "echo ready; read line")
        spec = BoxSpec(f"bench-{number}", str(root), command, OPEN, env={"PATH": "/bin"})
        begin = time.perf_counter()
        launch = await boxes.prepare(spec)
        prepared.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *launch.argv,
            env=dict(launch.env),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        first.append(time.perf_counter() - begin)
        null = os.open("/dev/null", os.O_RDWR)
        for _ in range(5):
            begin = time.perf_counter()
            running = await boxes.exec(spec.id, Exec(("/bin/true",)), Stdio(null, null, null))
            await running.wait()
            execs.append(time.perf_counter() - begin)
        os.close(null)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pss += [memory(Path(f"/proc/{child}/smaps_rollup"), "Pss")["Pss"] for child in children]
        await boxes.delete(spec.id)
        await process.wait()
    print(f"accelerator: {boxes.accelerator}; {runs} runs, medians")
    print(f"prepare: {statistics.median(prepared) * 1e3:.0f} ms")
    print(f"first output: {statistics.median(first):.2f} s (least {min(first):.2f} s)")
    print(f"exec of /bin/true: {statistics.median(execs) * 1e3:.0f} ms")
    print(f"PSS of QEMU with 512 MiB: {statistics.median(pss) / 1024:.0f} MiB")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(prefix="bedstone-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        size = guest.find_agent().stat().st_size
        found = agent_alone(folder)
        print(f"agent: {size / 1024:.0f} KiB on disk, {found['Rss']} KiB resident")
        print(f"agent: {found['Anonymous']} KiB of it anonymous")
        make_root(folder)
        boxes = MicrovmBoxes(folder / "home")

        async def measure() -> None:
            await boxes.open()
            await run(boxes, folder / "root", runs)

        asyncio.run(measure())


if __name__ == "__main__":
    main()
