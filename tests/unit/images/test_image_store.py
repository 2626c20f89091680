"""The content store: whole or absent after any crash, many writers, collection, leases."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bedstone.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from bedstone.images import digests, files, ingest
from bedstone.images.collection import closure, collect, stored_bytes
from bedstone.images.home import images_directory
from bedstone.images.models import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor
from bedstone.images.reference import Reference
from bedstone.images.store import ContentStore

_NAME = Reference.parse("r.io/app:1")


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ContentStore:
    return ContentStore(tmp_path / "images", clock=clock)


def put(store: ContentStore, data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type=media_type, digest=store.put(data), size=len(data))


def image(store: ContentStore, mark: str) -> tuple[Descriptor, list[str]]:
    """An image of two layers under an index, and the digests of all of it."""
    layers = [put(store, f"{mark} {number}".encode()) for number in range(2)]
    config = put(store, f"config {mark}".encode(), OCI_CONFIG)
    body = {
        "schemaVersion": 2,
        "config": config.model_dump(by_alias=True, exclude_defaults=True),
        "layers": [layer.model_dump(by_alias=True, exclude_defaults=True) for layer in layers],
    }
    manifest = put(store, json.dumps(body).encode(), OCI_MANIFEST)
    listing = {
        "schemaVersion": 2,
        "manifests": [manifest.model_dump(by_alias=True, exclude_defaults=True)],
    }
    index = put(store, json.dumps(listing).encode(), OCI_INDEX)
    return index, [one.digest for one in (*layers, config, manifest, index)]


def test_content_is_there_under_its_digest_and_read_only(store: ContentStore) -> None:
    digest = store.put(b"hello")
    assert store.put(b"hello") == digest
    assert store.read(digest) == b"hello"
    assert store.size(digest) == 5
    assert store.path(digest).stat().st_mode & 0o777 == 0o444
    assert list(store.blobs()) == [(digest, 5)]
    with pytest.raises(InvalidError, match="more than 4 bytes"):
        store.read(digest, limit=4)
    with pytest.raises(NotFoundError):
        store.read(digests.of(b"other"))
    with pytest.raises(VerificationError):
        store.put(b"other", digest)


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:", "x", "sha1:" + "a" * 40])
def test_no_digest_leads_out_of_the_store(store: ContentStore, digest: str) -> None:
    for method in (store.has, store.path, store.read, store.delete, store.writer, store.attached):
        with pytest.raises(InvalidError):
            method(digest)


def test_damage_on_disk_is_noticed(store: ContentStore) -> None:
    digest = store.put(b"hello")
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"hellO")
    for method in (store.read, store.verify):
        with pytest.raises(VerificationError, match="damaged"):
            method(digest)
    store.delete(digest)
    assert store.put(b"hello") == digest
    store.verify(digest)


def test_sha512_is_verified_too(store: ContentStore) -> None:
    digest = "sha512:" + __import__("hashlib").sha512(b"x").hexdigest()
    with store.writer(digest, 1) as writer:
        writer.write(b"x")
        writer.commit()
    store.verify(digest)
    assert list(store.blobs()) == [(digest, 1)]


def test_a_download_goes_on_where_it_was_cut(store: ContentStore) -> None:
    digest = digests.of(b"hello world")
    with store.writer(digest, 11) as writer:
        writer.write(b"hello ")
    assert not store.has(digest)
    assert store.usage().partial_bytes == 6
    with store.writer(digest, 11) as writer:
        assert writer.offset == 6
        writer.write(b"world")
        writer.commit()
    assert store.read(digest) == b"hello world"
    assert store.usage() == type(store.usage())(1, 11, 0)


def test_wrong_content_never_has_a_name(store: ContentStore) -> None:
    digest = digests.of(b"hello")
    with store.writer(digest, 5) as writer:
        writer.write(b"hellO")
        with pytest.raises(VerificationError, match="got content"):
            writer.commit()
        assert writer.offset == 0
        writer.write(b"hello")
        writer.commit()
    assert store.read(digest) == b"hello"


def test_more_than_was_announced_is_refused_before_it_is_written(store: ContentStore) -> None:
    with store.writer(digests.of(b"hello"), 5) as writer:
        writer.write(b"hel")
        with pytest.raises(VerificationError, match="more than the 5 bytes"):
            writer.write(b"x" * 100)
    assert store.usage().partial_bytes == 0


def test_less_than_was_announced_is_refused(store: ContentStore) -> None:
    with store.writer(digests.of(b"hello"), 9) as writer:
        writer.write(b"hello")
        with pytest.raises(VerificationError, match="expected 9 bytes"):
            writer.commit()


def test_what_a_power_cut_damaged_is_dropped_and_fetched_again(store: ContentStore) -> None:
    digest = digests.of(b"hello world")
    with store.writer(digest, 11) as writer:
        writer.write(b"hello ")
    (partial,) = (store.root / "ingest").iterdir()
    partial.write_bytes(b"\0" * 6)
    with store.writer(digest, 11) as writer:
        writer.write(b"world")
        with pytest.raises(VerificationError):
            writer.commit()
        assert writer.offset == 0


def test_one_writer_of_a_blob_at_a_time(store: ContentStore) -> None:
    digest = digests.of(b"hello")
    with store.writer(digest), pytest.raises(ConflictError, match="written by another"):
        store.writer(digest)
    with store.writer(digest) as writer:
        writer.write(b"hello")
        writer.commit()


def _race(root: Path, number: int) -> None:
    store = ContentStore(root)
    for turn in range(40):
        data = f"blob {turn}".encode() * 50
        digest = digests.of(data)
        lease = store.lease(f"{number}")
        lease.add(digest)
        while not store.has(digest):
            try:
                with store.writer(digest, len(data)) as writer:
                    writer.write(data[writer.offset :])
                    writer.commit()
            except ConflictError:
                continue
        assert store.read(digest) == data
        if number == 0 and turn % 10 == 0:
            collect(store)


def test_many_processes_write_and_collect_at_once(store: ContentStore) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_race, args=(store.root, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(store.blobs())) == 40
    for digest, _ in store.blobs():
        store.verify(digest)


class _CutError(Exception):
    pass


@pytest.mark.parametrize("place", ["fchmod", "fsync", "rename", "sync_directory"])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_leaves_it_whole_or_absent(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch, place: str, *, after: bool
) -> None:
    digest = digests.of(b"hello")
    with monkeypatch.context() as patch:
        owner: object = {
            "fchmod": os,
            "fsync": os,
            "rename": Path,
            "sync_directory": ingest,
        }[place]
        real: Callable[..., object] = getattr(owner, place)

        def cut(*args: object) -> object:
            if after:
                real(*args)
            raise _CutError

        with store.writer(digest, 5) as writer:
            writer.write(b"hello")
            patch.setattr(owner, place, cut)
            with pytest.raises(_CutError):
                writer.commit()
    again = ContentStore(store.root)
    if again.has(digest):
        again.verify(digest)
    else:
        with again.writer(digest, 5) as writer:
            assert writer.offset == 5
            writer.commit()
    assert again.read(digest) == b"hello"


def test_a_killed_writer_leaves_its_bytes_and_no_lock(store: ContentStore) -> None:
    data = b"x" * 3_000_000
    digest = digests.of(data)
    program = (
        "import sys, time; from pathlib import Path;"
        "from bedstone.images.store import ContentStore;"
        "w = ContentStore(Path(sys.argv[1])).writer(sys.argv[2], 3000000);"
        "w.write(b'x' * 2000000); print('there', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(store.root), digest], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with store.writer(digest, len(data)) as writer:
        assert writer.offset == 2_000_000
        writer.write(data[2_000_000:])
        writer.commit()
    store.verify(digest)


def test_a_full_disk_is_told_and_nothing_is_taken_for_written(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if offset >= 4:
            raise OSError(28, "No space left on device")
        return real(handle, data[:4], offset)

    digest = digests.of(b"hello world")
    with store.writer(digest, 11) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(UnavailableError, match="No space left"):
            writer.write(b"hello world")
        monkeypatch.undo()
        assert writer.offset == 0
        writer.write(b"hello world")
        writer.commit()


def test_names_mean_content_that_is_there(store: ContentStore, clock: Clock) -> None:
    index, _ = image(store, "a")
    with pytest.raises(NotFoundError, match="no image named"):
        store.resolve(_NAME)
    store.name(_NAME, index)
    assert store.resolve(_NAME) == index
    other, _ = image(store, "b")
    clock.now += 1
    store.name(_NAME, other)
    (named,) = store.names()
    assert (named.reference, named.descriptor, named.updated) == (_NAME, other, clock.now)
    store.unname(_NAME)
    assert store.names() == []
    with pytest.raises(NotFoundError):
        store.unname(_NAME)
    with pytest.raises(NotFoundError):
        store.name(_NAME, Descriptor(media_type=OCI_INDEX, digest=digests.of(b"gone"), size=4))


def test_collection_keeps_what_names_and_leases_lead_to(store: ContentStore, clock: Clock) -> None:
    named, named_parts = image(store, "named")
    leased, leased_parts = image(store, "leased")
    _, unused = image(store, "unused")
    store.name(_NAME, named)
    store.lease("box-1", seconds=10).add(leased.digest)
    collected = collect(store)
    assert set(collected.removed) == set(unused)
    assert collected.freed > 0
    assert {digest for digest, _ in store.blobs()} == {*named_parts, *leased_parts}
    clock.now += 10
    assert set(collect(store).removed) == set(leased_parts)
    assert store.leases() == []
    assert list((store.root / "leases").iterdir()) == []
    store.unname(_NAME)
    collect(store)
    assert store.usage().blobs == 0


def test_shared_layers_stay_with_the_other_image(store: ContentStore) -> None:
    first, parts = image(store, "a")
    store.name(_NAME, first)
    store.name(_NAME.tagged("2"), first)
    store.unname(_NAME)
    collect(store)
    assert {digest for digest, _ in store.blobs()} == set(parts)
    assert stored_bytes(store, first.digest) == sum(size for _, size in store.blobs())


def test_a_lease_keeps_what_comes_after_it(store: ContentStore) -> None:
    digest = digests.of(b"later")
    lease = store.lease("pull")
    lease.add(digest)
    store.put(b"later")
    assert collect(store).removed == ()
    assert store.lease("pull").holds == {digest}
    lease.release()
    lease.release()
    assert collect(store).removed == (digest,)


def test_a_lease_that_is_left_is_released(store: ContentStore) -> None:
    with store.lease("pull") as lease:
        lease.add(digests.of(b"x"))
        assert [one.name for one in store.leases()] == ["pull"]
    assert store.leases() == []


def test_attached_artifacts_live_with_their_subject(store: ContentStore) -> None:
    subject, _ = image(store, "a")
    store.name(_NAME, subject)
    artifact = put(store, b"the list of what is read first", "application/x")
    store.attach(subject.digest, "prefetch", artifact)
    assert store.attached(subject.digest) == {"prefetch": artifact}
    assert artifact.digest in closure(store, [subject.digest])
    assert collect(store).removed == ()
    store.unname(_NAME)
    assert artifact.digest in collect(store).removed
    assert list((store.root / "attached").iterdir()) == []
    with pytest.raises(InvalidError):
        store.attach(subject.digest, "../x", put(store, b"x"))


def test_a_blob_that_refers_to_itself_ends_the_walk(store: ContentStore) -> None:
    """A digest cannot name itself, but attachments can go round."""
    first, second = put(store, b"1"), put(store, b"2")
    store.attach(first.digest, "a", second)
    store.attach(second.digest, "a", first)
    assert closure(store, [first.digest]) == {first.digest, second.digest}


def test_old_downloads_and_leftovers_of_the_killed_go(store: ContentStore, clock: Clock) -> None:
    held, cut = digests.of(b"held"), digests.of(b"cut")
    with store.writer(cut, 10) as writer:
        writer.write(b"123")
    leftover = store.root / "references" / ".0123.tmp"
    leftover.write_bytes(b"{")
    with store.writer(held, 10) as writer:
        writer.write(b"12")
        for path in (store.root / "ingest").iterdir():
            os.utime(path, (clock.now - 100, clock.now - 100))
        assert collect(store, partial_after=200).freed == 0
        assert collect(store, partial_after=50).freed == 3
        assert store.usage().partial_bytes == 2
    assert not leftover.exists()


def test_the_collector_waits_for_who_adds(store: ContentStore) -> None:
    done = threading.Event()

    def run() -> None:
        collect(store)
        done.set()

    thread = threading.Thread(target=run)
    with store.adding():
        thread.start()
        assert not done.wait(0.1)
    thread.join(10)
    assert done.is_set()


def test_a_file_is_replaced_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.replace_file(path, b"old")

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_images_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEDSTONE_HOME", str(tmp_path))
    assert images_directory() == tmp_path / "images"
    monkeypatch.delenv("BEDSTONE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert images_directory() == Path("/var/lib/bedstone/images")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert images_directory() == tmp_path / "bedstone/images"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert images_directory() == Path.home() / ".local/share/bedstone/images"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="cannot keep images"):
        ContentStore(tmp_path / "file" / "images")
