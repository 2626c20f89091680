"""What an idle installation costs: resident memory (PSS) and processor time, by process.

Usage: python benchmarks/idle.py [--seconds 60]

The bank example is brought up, left alone for a while, and its processes' own counters are read
(proc(5): utime and stime of /proc/PID/stat, Pss of /proc/PID/smaps_rollup).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from bedstone.testing.domain import Domain

ROOT = Path(__file__).parents[1]
SETTLE_SECONDS = 10


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    domain = Domain.make(ROOT / "examples/bank")
    try:
        domain.up()
        time.sleep(SETTLE_SECONDS)
        pids = {**domain.pids(), "supervisor": domain.supervisor()}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        rows = {
            name: {
                "cpu_percent": round((cpu_seconds(pid) - before[name]) / seconds * 100, 2),
                "pss_mib": round(pss_mib(pid), 1),
            }
            for name, pid in sorted(pids.items())
        }
    finally:
        domain.down()
        domain.discard()
    print(json.dumps({"seconds": seconds, "processes": rows}, indent=2))


if __name__ == "__main__":
    main()
