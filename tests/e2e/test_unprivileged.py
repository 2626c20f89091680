"""The whole bank as an ordinary user: what root would enforce is cooperative, and says so."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.testing.domain import Domain

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(os.geteuid() != 0, reason="changes its user: run the tests as root"),
]

NOBODY = 65534
ROOT = Path(__file__).parents[2]


class UserDomain(Domain):
    """A domain whose every command is run by an ordinary user."""

    def run(
        self, *arguments: str, timeout: float = 90, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        code = "from bedstone.cli.main import main; main()"
        return subprocess.run(
            [self.directory / ".venv/bin/python", "-P", "-c", code, *arguments],
            cwd=self.directory,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.directory / "home"),
                "NO_COLOR": "1",
                "COLUMNS": "120",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )


def environment(directory: Path) -> None:
    """An environment that the user may enter, with the packages of the one that runs the tests."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        with contextlib.suppress(OSError):
            if not subprocess.run(
                ["/bin/sh", "-c", 'exec "$0" -c pass', python],
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                env={},
                capture_output=True,
                check=False,
            ).returncode:
                break
    else:
        pytest.skip(
            f"an ordinary user can't run {sys.executable}: put the environment below a directory "
            f"that others may enter, or install /usr/bin/python{version}"
        )
    venv = directory / ".venv"
    subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    paths = [str(ROOT / "src"), *sorted(packages)]
    folder = venv / "lib" / f"python{version}" / "site-packages"
    (folder / "packages.pth").write_text("\n".join(paths) + "\n")


@pytest.fixture(scope="module")
def bank() -> Iterator[UserDomain]:
    made = Domain.make(ROOT / "examples/bank")
    domain = UserDomain(made.directory, made.port)
    environment(domain.directory)
    (domain.directory / "home").mkdir()
    for path in (domain.directory, *domain.directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    imported = subprocess.run(
        [domain.directory / ".venv/bin/python", "-c", "import bedstone, psycopg, click"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    if imported.returncode:
        shutil.rmtree(domain.directory)
        pytest.skip(
            "an ordinary user can't read the installed packages: put the environment below a "
            f"directory that others may enter ({imported.stderr.decode().splitlines()[-1]})"
        )
    try:
        domain.output = domain.up()  # type: ignore[attr-defined] # for the tests below
        yield domain
        domain.down()
    finally:
        domain.discard()


def instance(domain: Domain, workload: str) -> dict[str, Any]:
    return next(
        part
        for part in domain.parts()
        if part["kind"] == "instance" and part["workload"] == workload
    )


def proxy_of(domain: Domain, workload: str) -> str:
    """The address of an instance's proxy, with its credential, from its environment."""
    pid = instance(domain, workload)["pid"]
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        name, _, value = entry.decode().partition("=")
        if name == "HTTP_PROXY":
            return value
    raise AssertionError(f"{workload} has no proxy")


def through(proxy: str, url: str) -> httpx.Response:
    with httpx.Client(proxy=proxy, timeout=10, trust_env=False) as client:
        return client.get(url)


def test_it_says_that_identities_are_cooperative_and_why(bank: Any) -> None:
    assert "cooperative, not enforced: network namespaces need root" in bank.output
    assert "cooperative, not enforced" in bank.ok("ps")
    assert "cooperative, not enforced" in bank.run("doctor").stdout


def test_every_process_is_the_users_own(bank: Any) -> None:
    everything = bank.everything()
    assert len(everything) >= 8
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in everything} <= {NOBODY, 0}
    users = {
        line.split()[1]
        for pid in everything
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("Uid:")
    }
    assert users == {str(NOBODY)}


def test_money_moves_through_the_mesh(bank: Any) -> None:
    with httpx.Client(base_url=bank.url, timeout=10, trust_env=False) as http:
        ann, bob = (
            http.post("/accounts", json={"owner": name, "balance": 100}).json()["id"]
            for name in ("ann", "bob")
        )
        body = {"id": "one", "from": ann, "to": bob, "amount": 30}
        assert http.post("/transfers", json=body).status_code == 201
        assert http.get(f"/accounts/{bob}").json()["balance"] == 130


def test_a_transfer_is_one_trace_of_proxies_and_applications(bank: Any) -> None:
    wanted = {"gateway", "web", "risk", "accounts"}

    def is_there() -> bool:
        found = json.loads(bank.ok("trace", "ls", "--name", "POST /transfers", "-o", "json"))
        return any(set(item["services"]) == wanted for item in found["items"])

    bank.wait(is_there, what="a trace")


def test_declared_calls_pass_and_others_are_denied(bank: Any) -> None:
    assert through(proxy_of(bank, "web"), "http://accounts/healthz").status_code == 200
    denied = through(proxy_of(bank, "risk"), "http://accounts/healthz")
    assert denied.status_code == 403
    assert denied.json()["code"] == "denied"
    assert '"risk" does not declare "accounts"' in denied.json()["message"]
    assert bank.run("call", "accounts/healthz", "--as", "risk").returncode == 1


def test_a_proxy_asks_for_the_credential_of_its_instance(bank: Any) -> None:
    good = httpx.URL(proxy_of(bank, "web"))
    other = httpx.URL(proxy_of(bank, "accounts"))
    for wrong in (
        good.copy_with(username="", password=""),
        good.copy_with(password="guess"),
        good.copy_with(username=other.username, password=other.password),
    ):
        refused = through(str(wrong), "http://accounts/healthz")
        assert refused.status_code == 407, refused.text
        assert refused.headers["proxy-authenticate"].startswith("Basic")
    direct = good.copy_with(username="", password="")
    assert httpx.get(direct, trust_env=False).status_code in (400, 403, 404, 407)


def test_credentials_are_readable_by_the_user_alone(bank: Any) -> None:
    private = [p for p in (bank.state / "node").rglob("*") if p.is_file()]
    private += (bank.state / "authority").rglob("*key*")
    assert private
    assert {p.stat().st_mode & 0o077 for p in private} == {0}


def test_a_killed_instance_comes_back_and_reads_see_no_error(
    bank: Any, make_load: Callable[..., Any]
) -> None:
    def read(client: httpx.Client) -> int:
        return client.get(f"{bank.url}/healthz").status_code

    with make_load(read) as outcome:
        bank.wait(lambda: bool(outcome.answers), what="the load runs")
        victim = instance(bank, "accounts")
        os.kill(victim["pid"], signal.SIGKILL)
        bank.wait(
            lambda: any(
                part["name"] == victim["name"]
                and part["state"] == "ready"
                and part["pid"] != victim["pid"]
                for part in bank.parts()
            ),
            20,
            "restarted",
        )
    assert outcome.failures == []


def test_a_server_and_a_proxy_that_die_come_back(bank: Any, make_load: Callable[..., Any]) -> None:
    proxy = next(part for part in bank.parts() if part["kind"] == "proxy")
    os.kill(proxy["pid"], signal.SIGKILL)
    bank.wait(lambda: _answers(bank), 10, "the proxy is back")
    bank.down()
    bank.up()
    assert _answers(bank)


def _answers(domain: Domain) -> bool:
    try:
        return httpx.get(f"{domain.url}/healthz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
