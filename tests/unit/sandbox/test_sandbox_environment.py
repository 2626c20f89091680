"""What an instance finds in its environment, and who runs it with what."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.model.resources import Address, Instance, Plumbing, Revision
from bedstone.model.spec import WorkloadSpec
from bedstone.sandbox.environment import credential, environment, proxy_url
from bedstone.sandbox.interpreter import find_interpreter, obstacle
from bedstone.sandbox.ports import Ports, bindable
from bedstone.sandbox.protocol import KIND, Unit, split_uses


def address(port: int) -> Address:
    return Address(host="127.0.0.1", port=port)


def make_unit(env: dict[str, str] | None = None, databases: dict[str, str] | None = None) -> Unit:
    return Unit(
        instance=Instance(app="bank", workload="web", name="w1", revision="r", node="n"),
        revision=Revision(
            app="bank",
            workload="web",
            name="r",
            spec=WorkloadSpec(command=("x",), env=env or {}),
        ),
        plumbing=Plumbing(
            app=address(1),
            inbound=address(2),
            outbound=address(3),
            services={"my-risk": address(4)},
            credential=credential("web", "p@ss/word"),
        ),
        databases={"ledger": "postgresql://web:s%40crt@127.0.0.1:5433/ledger"}
        if databases is None
        else databases,
    )


def test_only_named_variables_are_inherited() -> None:
    env = environment(make_unit(), {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "LANG": "C"})
    assert env["PATH"] == "/bin"
    assert env["LANG"] == "C"
    assert "AWS_SECRET_ACCESS_KEY" not in env


def test_names_with_hyphens_become_variables() -> None:
    env = environment(make_unit(), {})
    assert env["MY_RISK_URL"] == "http://127.0.0.1:4"
    assert env["LEDGER_URL"].startswith("postgresql://web:")


def test_manifest_wins_over_all_but_port_and_facts() -> None:
    unit = make_unit({"HTTP_PROXY": "http://mine", "PORT": "9", "BEDSTONE_APP": "forged"})
    env = environment(unit, {})
    assert env["HTTP_PROXY"] == "http://mine"
    assert env["PORT"] == "1"
    assert env["BEDSTONE_APP"] == "bank"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${databases.ledger.url}", "postgresql://web:s%40crt@127.0.0.1:5433/ledger"),
        ("${databases.ledger.host}", "127.0.0.1"),
        ("${databases.ledger.port}", "5433"),
        ("${databases.ledger.user}", "web"),
        ("${databases.ledger.password}", "s@crt"),
        ("${databases.ledger.name}", "ledger"),
        ("${env.HOME}", "/home/me"),
        ("${env.MISSING:-default}", "default"),
        ("$$5", "$5"),
    ],
)
def test_references_are_replaced(text: str, value: str) -> None:
    assert environment(make_unit({"X": text}), {"HOME": "/home/me"})["X"] == value


@pytest.mark.parametrize("text", ["${databases.other.url}", "${env.MISSING}"])
def test_reference_without_a_value_is_an_error(text: str) -> None:
    with pytest.raises(InvalidError):
        environment(make_unit({"X": text}), {})


def test_proxy_credential_round_trips_through_the_url() -> None:
    url = proxy_url(make_unit().plumbing)
    assert url == "http://web:p%40ss%2Fword@127.0.0.1:3"


def test_ports_are_not_handed_out_twice_nor_when_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert not bindable("127.0.0.1", taken)
        ports = Ports(taken, taken, start=taken)
        with pytest.raises(UnavailableError):
            ports.take()
    assert ports.take() == taken
    with pytest.raises(UnavailableError):
        ports.take()
    ports.free(taken)
    assert ports.take() == taken


def test_nearest_virtual_environment_is_the_interpreter(tmp_path: Path) -> None:
    source = tmp_path / "project" / "services" / "web"
    source.mkdir(parents=True)
    assert find_interpreter(source, "python3.11") == "python3.11"
    for folder in (tmp_path, tmp_path / "project"):
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        assert find_interpreter(source, None) == str(python)
    with pytest.raises(InvalidError) as caught:
        find_interpreter(source, "../nothing/python")
    assert caught.value.hint


def test_obstacle_names_what_keeps_others_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source = tmp_path / "private" / "web"
    source.mkdir(parents=True, mode=0o755)
    module = source / "app.py"
    module.touch(mode=0o644)
    found = obstacle(source)
    assert found is None or not Path(found).is_relative_to(tmp_path)
    (source / ".hidden").touch(mode=0o600)
    (source / "dangling").symlink_to(source / "nowhere")
    assert obstacle(source) == found, "what is hidden or not there does not count"
    package = source / "package"
    package.mkdir()
    (package / "inner.py").touch(mode=0o600)
    if found is None:
        assert obstacle(source) == str(package / "inner.py")
    source.parent.chmod(0o700)
    assert obstacle(source) is not None


def test_uses_are_told_apart() -> None:
    assert split_uses(["risk", "ledger"], ["ledger", "other"]) == (["risk"], ["ledger"])


def test_process_is_the_built_in_sandbox() -> None:
    assert "process" in KIND.names()
    assert KIND.load("process").__name__ == "ProcessSandbox"
