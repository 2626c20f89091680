"""How an application is started: in whose interpreter, on what socket, with what tracing."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError
from bedstone.runtime import DeadlineExceededError
from bedstone.runtime.clients import shorter
from bedstone.runtime.command import serve_command
from bedstone.runtime.serve import _bind
from bedstone.runtime.spans import recorder

APP = """
import sys
from bedstone.runtime import current

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise ValueError("this application knows nothing of lifespan")
    body = (sys.prefix + " " + str(current().shard_key)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


def _get(url: str, process: subprocess.Popen[bytes]) -> str:
    request = urllib.request.Request(url, headers={"x-bedstone-shard-key": "ann"})
    for _ in range(200):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.URLError:
            assert process.poll() is None
            time.sleep(0.05)
    raise AssertionError("it never answered")


def test_an_interpreter_without_bedstone_serves(tmp_path: Path) -> None:
    """Our libraries fill in what the application's environment does not have."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False, symlinks=True)
    (tmp_path / "shop.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = serve_command(str(environment / "bin" / "python"), "shop:app", port=port)
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        assert _get(f"http://127.0.0.1:{port}/", process) == f"{environment} ann"
    finally:
        process.terminate()
    assert process.wait(10) == 0


def test_what_the_application_brings_comes_first(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import sys\nraise ValueError(sys.path[0])\n")
    command = serve_command(sys.executable, "shop:app", port=0)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert f"ValueError: {tmp_path}" in done.stderr


def test_the_socket_sends_small_writes_at_once() -> None:
    """Asyncio sets TCP_NODELAY only if the socket names its protocol."""
    with _bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        with pytest.raises(ConnectionRefusedError):  # bound, and not yet open
            socket.create_connection(listener.getsockname(), 1)


def test_tracing_without_an_exporter_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with caplog.at_level(logging.WARNING):
        assert recorder("shop") is None
    assert "telemetry.no_exporter protocol=carrier-pigeon" in caplog.text


def test_a_passed_deadline_says_that_nothing_was_done() -> None:
    error = DeadlineExceededError("too late")
    assert isinstance(error, TimeoutError)
    assert isinstance(error, UnavailableError)
    assert (str(error), error.code) == ("too late", "unavailable")


@pytest.mark.parametrize(
    ("timeout", "left", "expected"), [(None, 2.0, 2.0), (1, 2.0, 1), (5.0, 2.0, 2.0), (0, 1.0, 0)]
)
def test_a_time_out_only_gets_shorter(timeout: float | None, left: float, expected: float) -> None:
    assert shorter(timeout, left) == expected


def test_starting_does_not_load_clients_that_the_application_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import sys\n"
        "heavy = {'httpx', 'requests', 'aiohttp', 'grpc', 'opentelemetry.sdk', 'pydantic'}\n"
        "raise ValueError(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "bedstone.runtime.serve", "shop:app", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("OTEL")}
        | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    )
    assert "importing shop failed: ValueError: []" in done.stderr


def test_the_applications_own_logging_stays(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import logging\n"
        "logging.basicConfig(format='shop says %(message)s')\n"
        "async def app(scope, receive, send):\n"
        "    logging.warning('closing')\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no ledger'})\n"
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
    assert "shop says closing" in done.stderr
    assert "shop says no ledger" in done.stderr
