"""A proxy's own words to series of ours: recorded answers of Envoy and what is made of them.

Recorded: a gateway with the routes `/` to web, `/r` to risk and `/h` of api.example.com to risk.
Clients got 200, 404 and 500 thrice each, three answers that broke off, three refusals; one client
went away before its answer, one after an upgrade; web asked risk once and somebody unknown once.
`BEDSTONE_GOLDEN=write` writes what is made now; review the difference.
"""

import json
import os
from pathlib import Path

from bedstone.node.collector.envoy_text import EnvoyCounts, Naming

HERE = Path(__file__).parent / "metrics"


def test_the_series_of_a_recorded_proxy() -> None:
    counts = EnvoyCounts(Naming("n1", lambda path: f"rev-{path.split('/')[2]}"))
    values = counts.update((HERE / "envoy.txt").read_bytes())
    lines = [
        f"{series.name}{{{','.join(f'{k}={v}' for k, v in series.labels)}}} {value:g}"
        for series, value in values.items()
    ]
    found = json.dumps(sorted(lines), indent=1) + "\n"
    path = HERE / "series.json"
    if os.environ.get("BEDSTONE_GOLDEN") == "write":
        path.write_text(found)
    assert found == path.read_text(), "regenerate with BEDSTONE_GOLDEN=write, and read the diff"
