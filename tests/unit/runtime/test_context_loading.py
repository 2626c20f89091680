"""What a user reads when their application cannot be imported or served."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = "async def app(scope, receive, send): ...\n"


def _serve(folder: Path, target: str, port: int = 0) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bedstone.runtime.serve", target, "--port", str(port)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("COV")},
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


CASES = {
    "module missing": (
        {"shop.py": GOOD},
        "shopp:app",
        ["error: no module named 'shopp'; looked in ", "did you mean 'shop'?"],
    ),
    "submodule missing": (
        {"shop/__init__.py": ""},
        "shop.cart:app",
        ["no module named 'shop.cart'"],
    ),
    "its import missing": (
        {"shop.py": "import os\nimport nowhere_to_be_found\n"},
        "shop:app",
        [
            "error: shop.py:2:1: shop imports 'nowhere_to_be_found', which is not installed for ",
            sys.executable,
            "shop.py:2: import nowhere_to_be_found",
        ],
    ),
    "syntax": (
        {"shop.py": "x = 1\ndef app(:\n    pass\n"},
        "shop:app",
        ["error: shop.py:2:9: ", "def app(:"],
    ),
    "raises": (
        {"shop.py": "import os\nurl = os.environ['NO_SUCH_URL']\n"},
        "shop:app",
        ["error: shop.py:2:7: importing shop failed: KeyError: 'NO_SUCH_URL'"],
    ),
    "raises deeper": (
        {"shop.py": "import cart\n", "cart.py": "def f():\n    return 1 / 0\nf()\n"},
        "shop:app",
        ["shop.py:1: import cart", "cart.py:3: f()", "cart.py:2: return 1 / 0"],
    ),
    "exits": (
        {"shop.py": "import sys\nsys.exit('no configuration')\n"},
        "shop:app",
        ["error: shop.py:2:1: importing shop failed: SystemExit: no configuration"],
    ),
    "attribute missing": (
        {"shop.py": GOOD.replace("app", "application")},
        "shop:aplication",
        ["error: shop has no 'aplication'", "did you mean 'application'?"],
    ),
    "nothing like it": ({"shop.py": "def serve(): ...\n"}, "shop:xyz", ["hint: it has serve"]),
    "no application": (
        {"shop.py": "app = {}\n"},
        "shop:app",
        ["shop:app is a dict, expected an ASGI application"],
    ),
    "not a target": ({}, "shop.py:app/x y", ["error: "]),
    "no module": ({}, ":app", ["expected module:attribute"]),
}


@pytest.mark.parametrize("case", CASES)
def test_an_application_that_cannot_be_imported(case: str, tmp_path: Path) -> None:
    files, target, expected = CASES[case]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    status, message = _serve(tmp_path, target)
    assert status == 2
    for part in expected:
        assert part in message
    assert "hint: " in message


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(GOOD)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, message = _serve(tmp_path, "shop:app", port)
    assert status == 7
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in message


def test_a_port_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(GOOD)
    status, message = _serve(tmp_path, "shop:app", 70000)
    assert status == 2
    assert "expected 0 to 65535" in message


def test_a_start_up_that_fails_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from starlette.applications import Starlette\n"
        "@asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    raise ValueError('no ledger')\n"
        "    yield\n"
        "app = Starlette(lifespan=lifespan)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "bedstone.runtime.serve", "shop:app", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 3
    assert "ValueError: no ledger" in done.stderr
