"""The files of an identity, in a folder that belongs to a program nobody has to trust."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedstone.sandbox.bootstrap import make_folder, write_bootstrap, write_identity

IDENTITY = ("key", "chain", "bundle")
OWNER = 2_100_000_001


@pytest.fixture(autouse=True)
def _as_the_node_runs() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_what_an_instance_put_there_is_not_written_to(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """Otherwise it could have root write to, and give it, any file of the machine."""
    folder = tmp_path / "instances" / "web"
    make_folder(folder, None)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("key.pem", "chain.pem", "bundle.pem", "grpc-xds.json"):
        link(folder / f".{name}.new", victim)
        link(folder / name, victim)
    write_identity(folder, IDENTITY, None)
    write_bootstrap(folder, "shop/web/0", "127.0.0.1:1", None)
    assert victim.read_text() == "untouched"
    assert (folder / "key.pem").read_text() == "key"
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away: run as root")
def test_its_owner_reaches_it_and_others_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "instances" / "web"
    make_folder(folder, OWNER)
    write_identity(folder, IDENTITY, OWNER)
    assert folder.parent.stat().st_mode & 0o777 == 0o711, "the owner can pass, and nobody can list"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder.stat().st_uid, (folder / "key.pem").stat().st_uid) == (OWNER, OWNER)
