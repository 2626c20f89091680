"""What may be loaded for others: each case in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bedstone.processes.renewal import THREAD_VARIABLES
from bedstone.runtime.command import MODULES


def preloaded(*modules: str, folder: Path | None = None) -> str | None:
    """Why an interpreter with these modules could not be forked."""
    program = "import json, sys; from bedstone.processes.preloading import preload\n"
    program += "print(json.dumps(preload(sys.argv[1:])))"
    paths = [os.environ.get("PYTHONPATH", ""), *([str(folder)] if folder else [])]
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, "1"),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        },
    )
    answer: str | None = json.loads(done.stdout)
    return answer


def test_what_serving_needs_can_be_loaded_for_others() -> None:
    """Else no workload with `run:` could ever be warm."""
    assert preloaded(*MODULES) is None


def test_common_libraries_can_be_loaded_for_others() -> None:
    assert preloaded("numpy", "fastapi", "httpx", "sqlalchemy", "psycopg", "aiohttp") is None


def test_who_draws_random_bytes_is_found_behind_who_conveys_them(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(
        "import secrets\ndef token():\n    return secrets.token_hex()"
    )
    (tmp_path / "outer.py").write_text("import inner\nKEY = inner.token()\n")
    drew = "has random bytes that every child would have: inner, line 3, drew them"
    assert preloaded("outer", folder=tmp_path) == f"after its import, outer {drew}"


def test_a_generator_of_random_numbers_is_renewed_and_may_be_made(tmp_path: Path) -> None:
    (tmp_path / "stream.py").write_text("import random\nSTREAM = random.Random()\nSTREAM.random()")
    assert preloaded("stream", "numpy.random", folder=tmp_path) is None
