"""Each mistake of a manifest: where it is said to be, what was expected, what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, NotFoundError, Position
from bedstone.model.manifest import load_manifest, parse_manifest
from bedstone.model.positions import ManifestError
from bedstone.model.spec import ExecProbe, HttpProbe, TcpProbe

GOOD = """\
app: bank
gateway:
  routes:
    - to: accounts
workloads:
  accounts:
    run: accounts:app
    uses: [ledger, risk]
  risk:
    command: [python, risk.py]
databases:
  ledger: {}
"""


def problems(text: str, **options: object) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml", **options)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


RUN = "    run: accounts:app\n"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        # unknown keys, with the nearest known one
        (
            "gateway:",
            "gatewy:",
            (
                "2:1: unknown key 'gatewy', expected one of app, gateway, workloads, databases, "
                "transactions, monitoring, alerts, receivers; "
                "did you mean 'gateway'?"
            ),
        ),
        (
            "    - to: accounts",
            "    - {to: accounts, hosts: x}",
            (
                "4:22: unknown key 'hosts', expected one of path, to, strip, host, timeout; "
                "did you mean 'host'?"
            ),
        ),
        (
            RUN,
            RUN + "    zzz: 1\n",
            "8:5: unknown key 'zzz', expected one of run, command, image, path",
        ),
        ("ledger: {}", "ledger: {size: 1}", "12:12: unknown key 'size', expected one of engine"),
        (
            RUN,
            RUN + "    environment: {}\n",
            "8:5: unknown key 'environment', expected one of run, command, image, path, python,",
        ),
        # types and bounds
        ("app: bank\n", "", "1:1: missing key 'app', expected a name of at most 40"),
        ("bank", "Bank", "1:6: got 'Bank', expected a name of at most 40 lower-case letters"),
        ("bank", "a" * 41, "1:6: got 'aaaa"),
        ("bank", "5", "1:6: got 5, expected a name"),
        ("bank", "[x]", "1:1: got a list, expected a name"),
        ("  risk:\n", "  Risk: {run: a:b}\n  risk:\n", "9:3: got the name 'Risk', expected a name"),
        (RUN, RUN + "    replicas: ten\n", "8:15: got 'ten', expected an integer from 0 to 1000"),
        (RUN, RUN + "    replicas: -1\n", "8:15: got -1, expected an integer from 0 to 1000"),
        (RUN, RUN + "    replicas: 1.5\n", "8:15: got 1.5, expected an integer from 0 to 1000"),
        (RUN, RUN + "    replicas: true\n", "8:15: got true, expected an integer from 0 to 1000"),
        (RUN, RUN + "    replicas: '2'\n", "8:15: got '2', expected an integer from 0 to 1000"),
        ("  routes:", "  port: 0\n  routes:", "3:9: got 0, expected an integer from 1 to 65535"),
        (
            "- to: accounts",
            "- {to: accounts, strip: yes}",
            "4:29: got 'yes', expected true or false",
        ),
        ("    - to: accounts", "    []", "3:3: got an empty list, expected a list of mappings"),
        ("    - to: accounts", "    {}", "3:3: got an empty mapping, expected a list of mappings"),
        ("    - to: accounts", "    - x", "4:7: got 'x', expected a mapping"),
        ("    - to: accounts", "    - path: /x", "4:7: missing key 'to', expected a name"),
        ("- to: accounts", "- {to: accounts, path: x}", "4:28: got 'x', expected a path such as"),
        (RUN, "    run: accounts\n", "7:10: got 'accounts', expected an ASGI application as modu"),
        (RUN, "    run: a.py:app.x:y\n", "7:10: got 'a.py:app.x:y', expected an ASGI"),
        (
            "[python, risk.py]",
            "python 'my risk.py' --n 5",
            (
                "10:14: got \"python 'my risk.py' --n 5\", expected a list of strings, not empty; "
                'write it as a list: [python, "my risk.py", "--n", "5"]'
            ),
        ),
        ("[python, risk.py]", "[]", "10:5: got an empty list, expected a list of strings"),
        ("[python, risk.py]", "[a, 5]", "10:18: got 5, expected a string; put it in quotes"),
        ("[python, risk.py]", "['']", "10:15: got '', expected a program"),
        (
            RUN,
            RUN + "    start_timeout: 5 s\n",
            "8:20: got '5 s', expected a number > 0 and ≤ 86400 or a duration such as 500ms",
        ),
        (RUN, RUN + "    timeout: 0\n", "8:14: got 0, expected a number > 0 and ≤ 86400 or"),
        (RUN, RUN + "    timeout: 25h\n", "8:14: got '25h', expected a number > 0 and ≤ 86400 or"),
        (
            RUN,
            RUN + "    limits: {memory: 256Mi}\n",
            "8:22: got '256Mi', expected an integer > 0 or a size such as 256MiB or 1GB",
        ),
        (RUN, RUN + "    limits: {cpu: '1'}\n", "8:19: got '1', expected a number > 0"),
        (RUN, RUN + "    env: {A: 5}\n", "8:14: got 5, expected a string; put it in quotes"),
        (RUN, RUN + "    env: {A: true}\n", "8:14: got true, expected a string; put it in quo"),
        (RUN, RUN + "    env: [A]\n", "8:5: got a list, expected a mapping"),
        ("[ledger, risk]", "ledger", "8:11: got 'ledger', expected a list of names; write it as"),
        (
            RUN,
            RUN + "    protocol: http3\n",
            "8:15: got 'http3', expected one of http, http2, grpc; did you mean 'http'?",
        ),
        ("ledger: {}", "ledger: {engine: mysql}", "12:20: got 'mysql', expected postgres"),
        # probes
        (
            RUN,
            RUN + "    ready: healthz\n",
            (
                "8:12: got 'healthz', expected a path such as /healthz, tcp or a mapping "
                "with one of path, tcp, command; did you mean '/healthz'?"
            ),
        ),
        (
            "databases:",
            "alerts:\n  slow: {wen: up > 1}\ndatabases:",
            (
                "12:3: got a mapping, expected a mapping with one of when, objective, series, "
                "expects; did you mean 'when'?"
            ),
        ),
        (RUN, RUN + "    live: 5\n", "8:11: got 5, expected a path such as /healthz, tcp or a"),
        (RUN, RUN + "    live: {tcp: no}\n", "8:17: got 'no', expected true"),
        (RUN, RUN + "    live: {path: x}\n", "8:18: got 'x', expected a path such as /healthz"),
        (RUN, RUN + "    live: /a b\n", "8:11: got '/a b', expected a path such as /healthz"),
        (
            RUN,
            RUN + "    live: {path: /x, intervall: 1s}\n",
            (
                "8:22: unknown key 'intervall', expected one of path, interval, timeout, failures; "
                "did you mean 'interval'?"
            ),
        ),
        (
            RUN,
            RUN + "    live: {path: /x, command: [x]}\n",
            "8:22: unknown key 'command', expected one of path, interval, timeout, failures",
        ),
        # what is not built yet
        ("databases:", "cells: {}\ndatabases:", "11:1: the key 'cells' cannot be used: cells are"),
        ("databases:", "secrets: {}\ndatabases:", "11:1: the key 'secrets' cannot be used"),
        (RUN, RUN + "    per_cell: false\n", "8:5: the key 'per_cell' cannot be used: cells are"),
        ("ledger: {}", "ledger: {standby: sync}", "12:12: the key 'standby' cannot be used"),
        (RUN, RUN + "    isolation: enclave\n", "8:16: got isolation 'enclave', expected process,"),
        (
            RUN,
            RUN + "    isolation: jail\n",
            "8:16: got 'jail', expected one of process, container",
        ),
        # exactly one way to run
        (RUN, "", "6:3: workload 'accounts' has none of run, command and image, expected"),
        (RUN, RUN + "    command: [x]\n", "8:5: workload 'accounts' has both run and command"),
        (RUN, RUN + "    protocol: grpc\n", "8:15: got protocol grpc with run, expected http"),
        (
            RUN,
            "    command: [serve]\n    warm: [json]\n",
            "8:5: got warm with the command 'serve', expected run, or a command of python",
        ),
        (
            RUN,
            RUN + "    isolation: gvisor\n    warm: [json]\n",
            "9:5: got warm with isolation gvisor, expected process",
        ),
        # images
        ("[python, risk.py]", "[x]\n    image: /", "11:12: got '/', expected an image such as"),
        ("[python, risk.py]", "[x]\n    image: x\n    path: .", "12:5: got path with an image"),
        (RUN, RUN + "    image: x\n", "7:5: got run with an image: it has programs of its own"),
        (
            RUN,
            "    image: x\n    isolation: process\n",
            "8:16: got isolation process with an image, expected container, gvisor or microvm",
        ),
        (RUN, RUN + "    warm: [no-module]\n", "8:12: got 'no-module', expected"),
        # names
        ("bank", "server", "1:6: the app name 'server' is reserved; choose another"),
        (
            "  risk:\n",
            "  operator: {run: a:b}\n  risk:\n",
            "9:3: the workload name 'operator' is res",
        ),
        (
            "  risk:\n",
            "  bedstone-x: {run: a:b}\n  risk:\n",
            "9:3: the workload name 'bedstone-x' is re",
        ),
        (
            "ledger: {}",
            "ledger: {}\n  risk: {}",
            "13:3: 'risk' is also a workload, at m.yaml:9:3: both would be RISK_URL; rename one",
        ),
        # uses and routes
        (
            "[ledger, risk]",
            "[ledgr, risk]",
            "8:12: got 'ledgr', expected a workload or a database: risk, ledger; did you mean 'l",
        ),
        ("[ledger, risk]", "[accounts]", "8:12: workload 'accounts' uses itself"),
        ("[ledger, risk]", "[risk, risk]", "8:18: 'risk' is in uses twice; remove one"),
        (
            "to: accounts",
            "to: acounts",
            "4:11: got 'acounts', expected a workload: accounts, risk; did you mean 'accounts'?",
        ),
        ("to: accounts", "to: ledger", "4:11: got 'ledger', expected a workload: accounts, risk"),
        (
            "    - to: accounts",
            "    - to: accounts\n    - {path: /, to: risk}",
            "5:7: duplicate route /, first given at m.yaml:4:7; keep one of the two",
        ),
        (
            "- to: accounts",
            "- {to: accounts, host: 'A:80'}",
            "4:28: got 'A:80', expected a host name in lower case",
        ),
        (
            "  routes:",
            "  address: localhost\n  routes:",
            "3:12: got 'localhost', expected an IP address",
        ),
        # environment and references
        (RUN, RUN + "    env: {A-B: x}\n", "8:11: got the variable 'A-B', expected letters"),
        (RUN, RUN + "    env: {PORT: '80'}\n", "8:11: the variable PORT is set by Bedstone"),
        (RUN, RUN + "    env: {BEDSTONE_X: y}\n", "8:11: the variable BEDSTONE_X is set by"),
        (RUN, RUN + "    env: {A: '${env.A'}\n", "8:14: got '${' without an end, expected '}'"),
        (
            RUN,
            RUN + "    env: {A: '${databases.ledgr.url}'}\n",
            "8:14: got 'ledgr', expected a database: ledger; did you mean 'ledger'?",
        ),
        (
            "[python, risk.py]",
            "[x]\n    env: {A: '${databases.ledger.url}'}",
            (
                "11:14: ${databases.ledger.url} is of a database that the workload does not use; "
                "add ledger to workloads.risk.uses"
            ),
        ),
        (
            "ledger: {}",
            "ledger: {url: 'mysql://user:secret@host/db'}",
            "12:17: got a URL with mysql, expected postgres://USER:PASSWORD@HOST/NAME",
        ),
        (
            "ledger: {}",
            "ledger: {url: 'postgres://${databases.x.url}'}",
            "12:17: got ${databases.x.url}, expected references to env only",
        ),
    ],
)
def test_one_mistake_is_one_problem_with_its_place(old: str, new: str, problem: str) -> None:
    (found,) = problems(changed(old, new))
    assert found.removeprefix("m.yaml:").startswith(problem)
    assert "secret" not in found.replace("secrets", "")


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        (RUN, RUN + "    environment: {}\n", "did you mean 'env'?"),
        (RUN, RUN + "    depends_on: [risk]\n", "did you mean 'uses'?"),
        (RUN, RUN + "    Replicas: 1\n", "did you mean 'replicas'?"),
        ("databases:", "services: {}\ndatabases:", "did you mean 'workloads'?"),
        ("databases:", "port: 80\ndatabases:", "it belongs in gateway"),
        (RUN, RUN + "    memory: 5GB\n", "it belongs in limits"),
        ("ledger: {}", "ledger: {timeout: 5s}", "it belongs in a route or a workload"),
        (RUN, RUN + "    zzz: 1\n", None),
    ],
)
def test_an_unknown_key_suggests_what_was_meant(old: str, new: str, hint: str | None) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(changed(old, new))
    assert [problem.hint for problem in caught.value.problems] == [hint]


@pytest.mark.parametrize("text", ["5\n", "- a\n", "hello\n", "[]\n", "{}\n"])
def test_what_is_no_manifest_is_said_to_be_none(text: str) -> None:
    found = problems(text)
    assert found[0].startswith("m.yaml:1:1: ")
    assert any(word in found[0] for word in ("expected a mapping with the keys", "missing key"))


def test_all_mistakes_are_reported_together_in_the_order_of_the_text() -> None:
    text = GOOD.replace("bank", "Bank").replace("[ledger, risk]", "[ledgr, risk]") + "cells: {}\n"
    found = [line.split(": ")[0] for line in problems(text.replace("to: acc", "too: acc"))]
    assert found == ["m.yaml:1:6", "m.yaml:4:7", "m.yaml:4:7", "m.yaml:8:12", "m.yaml:13:1"]


def test_the_error_carries_each_problem_for_programs() -> None:
    with pytest.raises(InvalidError) as caught:
        parse_manifest(changed("bank", "Bank"), "m.yaml")
    assert isinstance(caught.value, ManifestError)
    (problem,) = caught.value.problems
    assert problem.position == Position("m.yaml", 1, 6)
    assert problem.location == ("app",)
    assert caught.value.hint


def test_an_unset_variable_is_a_mistake_where_the_environment_is_known() -> None:
    text = changed(RUN, RUN + "    env: {A: '${env.TOKEN}', B: '${env.OTHER:-x}'}\n")
    assert problems(text, environ={}) == [
        (
            "m.yaml:8:14: the environment variable TOKEN is not set, expected by ${env.TOKEN}; "
            "set it, or write ${env.TOKEN:-default}"
        )
    ]
    assert parse_manifest(text, environ={"TOKEN": "t"}).spec == parse_manifest(text).spec


def test_short_and_full_forms_are_one() -> None:
    short = changed(
        RUN,
        RUN
        + "    ready: /healthz\n    live: tcp\n    timeout: 1500ms\n    limits: {memory: 1KiB}\n",
    )
    full = changed(
        RUN,
        RUN
        + "    ready: {path: /healthz}\n    live: {tcp: true}\n    timeout: 1.5\n"
        + "    limits: {memory: 1024}\n",
    )
    assert parse_manifest(short).spec == parse_manifest(full).spec
    accounts = parse_manifest(short).spec.workloads["accounts"]
    assert accounts.ready == HttpProbe(path="/healthz")
    assert accounts.live == TcpProbe()
    exec_probe = changed(RUN, RUN + "    ready: {command: [x, y], interval: 5s}\n")
    ready = parse_manifest(exec_probe).spec.workloads["accounts"].ready
    assert ready == ExecProbe(command=("x", "y"), interval=5.0)


def test_positions_are_kept_for_later_messages() -> None:
    manifest = parse_manifest(GOOD, "m.yaml")
    assert manifest.position("workloads.accounts.uses[1]") == Position("m.yaml", 8, 20)
    assert manifest.position("workloads.risk") == Position("m.yaml", 9, 3)
    assert manifest.position("workloads.risk.ready.path") == Position("m.yaml", 9, 3)
    assert manifest.position("gateway.routes[0]") == Position("m.yaml", 4, 7)


def test_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_manifest(tmp_path)
    assert str(tmp_path / "bedstone.yaml") in caught.value.message
    assert "bedstone init" in (caught.value.hint or "")


def test_a_manifest_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "bedstone.yaml").mkdir()
    with pytest.raises(InvalidError, match="cannot be read: Is a directory") as caught:
        load_manifest(tmp_path)
    assert caught.value.hint


def test_an_endless_manifest_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"/dev/zero:1:1: got more than \d+ bytes"):
        load_manifest(Path("/dev/zero"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; run as another user")
def test_a_manifest_that_may_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "bedstone.yaml"
    file.write_text(GOOD)
    file.chmod(0)
    with pytest.raises(InvalidError, match="Permission denied"):
        load_manifest(file)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "there is no directory 'missing' beside the manifest"),
        ("file", "there is no directory 'file' beside the manifest"),
        ("..", "got '..', expected a directory inside app"),
        ("link", "got 'link', expected a directory inside app"),
        ("/", "got '/', expected a directory inside app"),
        ('"a\\0b"', "there is no directory 'a\\x00b' beside the manifest"),
    ],
)
def test_a_path_must_be_a_directory_below_the_manifest(
    tmp_path: Path, path: str, message: str
) -> None:
    root = tmp_path / "app"
    root.mkdir()
    (root / "file").touch()
    (root / "link").symlink_to(tmp_path)
    text = changed(RUN, RUN + f"    path: {path}\n")
    (root / "bedstone.yaml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(root)
    assert [p.message for p in caught.value.problems] == [message]
    assert parse_manifest(text).spec.workloads["accounts"].path  # only files tell


def test_a_manifest_is_loaded_from_its_file_or_its_directory(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "bedstone.yaml").write_text(changed(RUN, RUN + "    path: src\n"))
    manifest = load_manifest(tmp_path)
    assert manifest == load_manifest(tmp_path / "bedstone.yaml")
    assert manifest.root == tmp_path.resolve()
    assert manifest.file == str(tmp_path / "bedstone.yaml")


def test_the_url_of_a_message_broker_may_be_given() -> None:
    """Bedstone runs no broker, so that nothing else sets it."""
    spec = parse_manifest(changed(RUN, RUN + "    env: {BEDSTONE_BROKER_URL: 'nats://b'}\n")).spec
    assert spec.workloads["accounts"].env == {"BEDSTONE_BROKER_URL": "nats://b"}
