"""Time from `bedstone up --detach --wait` to all parts ready, warm; and what it waits for.

Usage: python benchmarks/start.py [--runs 5]

The bank example is brought up once cold (databases are made), then `--runs` times warm. The floor
is what the same programs need without Bedstone: importing the three services in parallel on this
machine, after importing the server; no start can be faster than the slower of the two chains.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bedstone.testing.domain import Domain

ROOT = Path(__file__).parents[1]


def timed(*command: str, cwd: Path = ROOT) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, *command], check=True, cwd=cwd, capture_output=True)
    return time.monotonic() - start


def services(directory: Path) -> float:
    """Seconds until all three services of the bank have been imported, side by side."""
    start = time.monotonic()
    commands = ("import accounts", "import accounts", "import web")
    running = [
        subprocess.Popen([sys.executable, "-c", f"import uvicorn; {command}"], cwd=directory)
        for command in commands
    ]
    for process in running:
        process.wait()
    return time.monotonic() - start


def milestones(output: str) -> dict[str, float]:
    """When the last part of each kind became ready, by what `up` printed."""
    found: dict[str, float] = {}
    for line in output.splitlines():
        if match := re.match(r"\s*([\d.]+)s\s+(\w+)\s+.*\sready", line):
            found[match[2]] = float(match[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    domain = Domain.make(ROOT / "examples/bank")
    totals: list[float] = []
    parts: list[dict[str, float]] = []
    try:
        start = time.monotonic()
        domain.up()
        cold = time.monotonic() - start
        for _ in range(runs):
            domain.down()
            start = time.monotonic()
            output = domain.up()
            totals.append(time.monotonic() - start)
            parts.append(milestones(output))
        server = statistics.median(timed("-c", "import bedstone.server.daemon") for _ in range(3))
        node = statistics.median(timed("-c", "import bedstone.node.agent") for _ in range(3))
        floor = statistics.median(services(domain.directory) for _ in range(3))
    finally:
        domain.down()
        domain.discard()
    kinds = ("server", "proxy", "engine", "certificate", "instance", "route")
    warm = statistics.median(totals)
    print(
        json.dumps(
            {
                "cold_s": round(cold, 2),
                "warm_s": {
                    "median": round(warm, 2),
                    "min": round(min(totals), 2),
                    "max": round(max(totals), 2),
                },
                "last_of_kind_ready_s": {
                    kind: statistics.median(p.get(kind, 0.0) for p in parts) for kind in kinds
                },
                "floor_s": {
                    "import_server": round(server, 2),
                    "import_node": round(node, 2),
                    "import_services_in_parallel": round(floor, 2),
                    "server_then_services": round(server + floor, 2),
                },
                "ratio_to_floor": round(warm / (server + floor), 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
