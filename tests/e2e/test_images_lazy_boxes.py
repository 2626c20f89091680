"""Boxes start on lazy roots: shared, found again whoever is killed, let go with the last box."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from bedstone.boxes import Sandbox
from bedstone.boxes.roots import find_root, let_go
from bedstone.errors import UnavailableError
from bedstone.images.bundles import load
from bedstone.images.collection import collect
from bedstone.images.lazy import artifact
from bedstone.images.lazy.mounting import best, say
from bedstone.images.opening import Opened, open_image
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore
from bedstone.sandbox.boxes import KIND
from bedstone.testing.box_programs import supported
from bedstone.testing.layers import entry, folder, oci_layout, symlink, tar

pytestmark = pytest.mark.skipif(best()[0] == "plain", reason=best()[1])

BIG = os.urandom(3_000_000)
NAME = "localhost/it:1"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ContentStore]:
    """A store with a converted image of busybox and a large file."""
    monkeypatch.setenv("BEDSTONE_HOME", str(tmp_path))
    tool = Path("/bin/busybox").read_bytes()
    names = ("sh", "cat", "md5sum", "sleep", "id", "wc")
    layer = [folder(name) for name in ("bin", "etc", "proc", "dev", "sys", "tmp")]
    layer += [entry("bin/busybox", tool, mode=0o755), entry("big", BIG)]
    layer += [symlink(f"bin/{name}", "busybox") for name in names]
    oci_layout(tmp_path / "layout", [tar(layer)], "1")
    made = ContentStore(tmp_path / "images")
    load(made, tmp_path / "layout", tag="1", name=Reference.parse(NAME))
    artifact.build(made, open_image(made, Reference.parse(NAME)), "converted")
    yield made
    for lease in made.leases():
        lease.release()
    collect(made)
    assert runs(made) == []


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that the users of boxes can pass through; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="bedstone-lazy-") as place:
        Path(place).chmod(0o711)
        yield Path(place)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


def remembered(store: ContentStore, image: Opened) -> list[int]:
    return artifact.remembered(store, image, artifact.find(store, image).digest)


def runs(store: ContentStore) -> list[Path]:
    return [*(store.root / "lazy").glob("run-*")]


def pids(directory: Path) -> tuple[int, int]:
    """The keeper of a mount, and its server."""
    keeper = server = 0
    for folder_path in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder_path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(directory).encode() in line:
            if b"bedstone.images.lazy.keeper" in line:
                keeper = int(folder_path.name)
            elif b"bedstone.images.lazy.server" in line:
                server = int(folder_path.name)
    return keeper, server


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def replaced(directory: Path, server: int) -> bool:
    return pids(directory)[1] not in (0, server)


def keeps(directory: Path) -> bool:
    try:
        say(directory, "here")
    except UnavailableError:
        return False
    return True


@pytest.mark.parametrize("isolation", ["container", "gvisor"])
@in_loop
async def test_a_box_runs_on_a_lazy_root(
    store: ContentStore, passable: Path, isolation: str
) -> None:
    if (why := supported()) is not None:
        pytest.skip(why)
    home = passable / "boxes"
    try:
        await KIND.load(isolation)(home).open()
    except UnavailableError as error:
        pytest.skip(f"{error}; {error.hint}")
    async with Sandbox.create(NAME, isolation=isolation, home=home, name="lazy-one") as box:
        (run,) = runs(store)
        assert not [note for note in box.notes if "unpacked" in note]
        asked = await box.exec("sh", "-c", "echo more >> /big; wc -c < /big; id -u")
        assert asked.stdout.split() == [b"3000005", b"0"], asked
        async with Sandbox.create(NAME, isolation=isolation, home=home, name="lazy-two") as other:
            assert runs(store) == [run], "boxes of one image share its mount"
            assert (await other.exec("wc", "-c", "/big")).stdout.split() == [b"3000000", b"/big"]
        assert runs(store) == [run]
    assert runs(store) == []
    assert not (store.root / "roots").exists(), "nothing was unpacked"
    image = open_image(store, Reference.parse(NAME))
    assert remembered(store, image), "what the first run touched is read ahead next time"


@in_loop
async def test_either_of_keeper_and_server_may_be_killed(store: ContentStore) -> None:
    root = await find_root(NAME, "killed")
    (run,) = runs(store)
    for _ in range(2):
        keeper, _ = pids(run)
        os.kill(keeper, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: keeps(run))
        _, server = pids(run)
        os.kill(server, signal.SIGKILL)
        await asyncio.to_thread(until, functools.partial(replaced, run, server))
    assert await asyncio.to_thread((root.path / "big").read_bytes) == BIG
    again = await find_root(NAME, "killed-too")
    assert again.path == root.path
    let_go("killed")
    assert keeps(run)
    let_go("killed-too")
    assert runs(store) == []
    await asyncio.to_thread(until, lambda: pids(run) == (0, 0))


@in_loop
async def test_when_all_are_killed_another_mount_is_made_and_the_dead_one_goes(
    store: ContentStore,
) -> None:
    before = await find_root(NAME, "box-a")
    (run,) = runs(store)
    keeper, server = pids(run)
    os.kill(keeper, signal.SIGSTOP)  # so that it cannot start another server
    os.kill(server, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    with pytest.raises(OSError, match="error"):
        await asyncio.to_thread((before.path / "big").read_bytes)
    after = await find_root(NAME, "box-b")
    assert after.path != before.path
    assert await asyncio.to_thread((after.path / "big").read_bytes) == BIG
    assert run not in runs(store)
    again = await find_root(NAME, "box-a")
    assert again.path == after.path


@in_loop
async def test_a_mount_is_given_to_the_code_that_is_installed_now(store: ContentStore) -> None:
    root = await find_root(NAME, "old")
    (run,) = runs(store)
    (run / "version").write_text("0.0.1")
    keeper, _ = pids(run)
    await find_root(NAME, "new")
    assert pids(run)[0] not in (0, keeper)
    assert (run / "version").read_text() != "0.0.1"
    assert await asyncio.to_thread((root.path / "big").read_bytes) == BIG


@in_loop
async def test_what_a_killed_starter_left_is_swept(store: ContentStore) -> None:
    await find_root(NAME, "box")
    (run,) = runs(store)
    (run / "users.json").write_text(json.dumps(["box that-was-killed-before-its-lease"]))
    collect(store)
    assert runs(store) == []
