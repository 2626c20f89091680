"""Lazy images go to a registry and are started from there: only what somebody vouches for."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from bedstone.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from bedstone.images import signatures
from bedstone.images.bundles import load
from bedstone.images.collection import collect
from bedstone.images.lazy import artifact
from bedstone.images.lazy.holding import sweep
from bedstone.images.lazy.mounting import best
from bedstone.images.lazy.sealing import open_key
from bedstone.images.opening import open_image
from bedstone.images.pushing import push
from bedstone.images.reference import Reference
from bedstone.images.referrers import artifacts
from bedstone.images.registry import RegistryClient
from bedstone.images.starting import Started, start_root
from bedstone.images.store import ContentStore
from bedstone.testing.layers import entry, folder, oci_layout, tar
from bedstone.testing.registry import Registry, running_registry

pytestmark = pytest.mark.skipif(best()[0] == "plain", reason=best()[1])

BIG = os.urandom(1_500_000)
SECRET = b"the words of the secret file " * 500
LAYERS = [
    tar([folder("secret-names"), entry("secret-names/in", SECRET), entry("big", BIG)]),
    tar([entry("big-too", BIG), *[entry(f"small/{it:03}", b"%d" % it * 50) for it in range(40)]]),
]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry(scheme="none") as running:
        yield running


class Maker:
    """Who makes images and sends them."""

    def __init__(self, scratch: Path, registry: Registry) -> None:
        oci_layout(scratch / "layout", LAYERS, "1")
        self.store = ContentStore(scratch / "maker" / "images")
        self.name = Reference.parse(f"{registry.host}/app:1")
        load(self.store, scratch / "layout", tag="1", name=self.name)
        self.image = open_image(self.store, self.name)
        self.key = ed25519.Ed25519PrivateKey.generate()

    def public(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, form)

    async def send(self, name: Reference | None = None) -> None:
        async with RegistryClient() as client:
            await push(self.store, client, name or self.name)

    async def sign(self, *wanted: str) -> None:
        async with RegistryClient() as client:
            for digest in wanted:
                signed = signatures.sign(self.name, digest, self.key)
                await signatures.publish(client, self.name, digest, signed)

    def beside(self) -> dict[str, str]:
        found = artifacts(self.store, self.image.descriptor.digest)
        return {json.loads(one.data)["artifactType"]: one.descriptor.digest for one in found}


class User:
    """Another machine: a store of its own, which ends with all its mounts."""

    def __init__(self, scratch: Path, name: str = "user") -> None:
        self.home = scratch / name
        self.store = ContentStore(self.home / "images")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.lease("it").release()
        sweep(self.store)

    def demand(self, maker: Maker) -> None:
        (self.home / "maker.pub").write_bytes(maker.public())
        rule = {"match": "*", "signed_by": ["maker.pub"]}
        (self.home / "image-policy.yaml").write_text(json.dumps({"images": [rule]}))

    async def start(self, name: Reference) -> Started:
        return await start_root(self.store, name, "it")


def layers_sent(registry: Registry, maker: Maker) -> int:
    wanted = {layer.digest for layer in maker.image.manifest.layers}
    return sum(asked.sent for asked in registry.requests if asked.path.split("/")[-1] in wanted)


@pytest.mark.parametrize("form", ["converted", "index"])
@pytest.mark.parametrize("lists", [True, False])
@in_loop
async def test_another_machine_starts_before_content_is_there(
    tmp_path: Path, registry: Registry, form: artifact.Form, *, lists: bool
) -> None:
    registry.faults.referrers = lists
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, form)
    for _ in range(2):  # the second time, all is there
        await maker.send()
    with User(tmp_path) as user:
        registry.requests.clear()
        started = await user.start(maker.name)
        assert started.notes == ()
        assert registry.sent() < 40_000
        assert started.path.is_relative_to(user.store.root / "lazy")
        read = await asyncio.to_thread((started.path / "secret-names/in").read_bytes)
        assert read == SECRET
        assert await asyncio.to_thread((started.path / "big-too").read_bytes) == BIG
        kept = collect(user.store)
        assert kept.removed == (), "it is kept with its image"
        assert (layers_sent(registry, maker) > 0) is (form == "index")
        # The registry goes away: what was read stays, and so does the mount for the next one.
        registry.faults.down = True
        again = await user.start(maker.name)
        assert again.path == started.path
        assert await asyncio.to_thread((again.path / "big").read_bytes) == BIG


@in_loop
async def test_a_registry_without_ranges_gives_blobs_whole(
    tmp_path: Path, registry: Registry
) -> None:
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, "converted")
    await maker.send()
    registry.faults.ranges = False
    with User(tmp_path) as user:
        started = await user.start(maker.name)
        assert await asyncio.to_thread((started.path / "big").read_bytes) == BIG
        blobs = artifact.load(user.store, artifact.find(user.store, started.image)).table.blobs
        assert user.store.has(blobs[0].digest), "it is here now, as if it had been pulled"
        registry.faults.down = True
        read = await asyncio.to_thread((started.path / "secret-names/in").read_bytes)
        assert read == SECRET


@in_loop
async def test_mirrors_come_first_and_one_that_lies_or_is_gone_does_not_matter(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, "converted")
    await maker.send()
    with running_registry(scheme="none") as mirror, User(tmp_path) as user:
        mirror.manifests, mirror.tags = registry.manifests, registry.tags
        mirror.blobs, mirror.linked = registry.blobs, registry.linked
        monkeypatch.setenv("BEDSTONE_REGISTRY_MIRRORS", f"{registry.host}={mirror.url}")
        started = await user.start(maker.name)
        registry.faults.down = True
        read = await asyncio.to_thread((started.path / "secret-names/in").read_bytes)
        assert read == SECRET
        registry.faults.down = False
        big = artifact.load(user.store, artifact.find(user.store, started.image)).table.blobs[0]
        mirror.faults.tampered = {big.digest: bytes(big.size)}
        assert await asyncio.to_thread((started.path / "big").read_bytes) == BIG
        (run,) = (user.store.root / "lazy").glob("run-*")
        assert "chunk rejected" in (run / "events.jsonl").read_text()
        mirror.faults.down = True
        small = await asyncio.to_thread((started.path / "small/007").read_bytes)
        assert small == b"7" * 50


@in_loop
async def test_what_was_changed_on_the_way_is_not_used_and_the_image_is_unpacked(
    tmp_path: Path, registry: Registry
) -> None:
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, "converted")
    await maker.send()
    found = artifact.find(maker.store, maker.image)
    parts = {part.media_type: part.digest for part in found.manifest.layers}
    document = maker.store.read(found.digest)
    table = maker.store.read(parts[artifact.TABLE], artifact.PART)
    wrong = [
        {found.digest: document.replace(b"converted", b"convert!d")},
        {parts[artifact.TABLE]: table[:-1] + b"\0"},
        {parts[artifact.METADATA]: maker.store.read(parts[artifact.METADATA], 1 << 30)[:-9]},
    ]
    for number, tampered in enumerate(wrong):
        with User(tmp_path, f"user{number}") as user:
            registry.faults.tampered = tampered
            started = await user.start(maker.name)
            assert started.path.is_relative_to(user.store.root / "roots")
            assert "not used" in started.notes[0]
            assert (started.path / "big").read_bytes() == BIG


@in_loop
async def test_a_lazy_image_that_reads_from_elsewhere_is_not_used(
    tmp_path: Path, registry: Registry
) -> None:
    """Well-formed, at the right place, and of another image."""
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, "converted")
    found = artifact.find(maker.store, maker.image)
    other = tmp_path / "other"
    oci_layout(other / "layout", [tar([entry("big", b"another")])], "1")
    load(maker.store, other / "layout", tag="1", name=Reference.parse("localhost/other:1"))
    image = open_image(maker.store, Reference.parse("localhost/other:1"))
    artifact.build(maker.store, image, "index")
    foreign = artifact.find(maker.store, image).manifest
    forged = {
        **json.loads(maker.store.read(found.digest)),
        "layers": [json.loads(layer.model_dump_json(by_alias=True)) for layer in foreign.layers],
    }
    async with RegistryClient() as client:
        await push(maker.store, client, Reference.parse("localhost/other:1"), maker.name)
    maker.store.attach(maker.image.descriptor.digest, artifact.KIND, image.descriptor)
    await maker.send()
    registry.add_manifest("app", forged, "application/vnd.oci.image.manifest.v1+json")
    with User(tmp_path) as user:
        started = await user.start(maker.name)
        assert "reads blob" in started.notes[0]
        assert (started.path / "big").read_bytes() == BIG


@in_loop
async def test_an_encrypted_lazy_image_of_a_plain_image_is_not_used(
    tmp_path: Path, registry: Registry
) -> None:
    """Whoever may send to the repository could keep everybody from starting otherwise."""
    maker = Maker(tmp_path, registry)
    await maker.send()
    artifact.build(maker.store, maker.image, "converted")
    genuine = json.loads(maker.store.read(artifact.find(maker.store, maker.image).digest))
    seal = json.dumps({"cipher": "AES-256-GCM", "key": "0000", "wrapped": "AAAA"})
    forged = {**genuine, "annotations": {**genuine["annotations"], artifact.SEAL: seal}}
    registry.add_manifest("app", forged, "application/vnd.oci.image.manifest.v1+json")
    with User(tmp_path) as user:
        started = await user.start(maker.name)
        assert "is encrypted, and the other is not" in started.notes[0]
        assert (started.path / "big").read_bytes() == BIG


@in_loop
async def test_the_policy_demands_signatures_of_lazy_images_too(
    tmp_path: Path, registry: Registry
) -> None:
    maker = Maker(tmp_path, registry)
    artifact.build(maker.store, maker.image, "converted")
    await maker.send()
    await maker.sign(maker.image.descriptor.digest)
    with User(tmp_path, "careful") as user:
        user.demand(maker)
        started = await user.start(maker.name)
        assert "not signed by a known key" in started.notes[0]
        assert started.path.is_relative_to(user.store.root / "roots")
    with User(tmp_path, "pinning") as user:
        started = await user.start(maker.name.at(maker.image.descriptor.digest))
        assert "named by its digest" in started.notes[0]
        assert started.path.is_relative_to(user.store.root / "roots")
    await maker.sign(*maker.beside().values())
    with User(tmp_path, "believing") as user:
        user.demand(maker)
        started = await user.start(maker.name.at(maker.image.descriptor.digest))
        assert started.notes == ()
        assert started.path.is_relative_to(user.store.root / "lazy")
        # Another key from now on: what was pulled is asked about anew.
        maker.key = ed25519.Ed25519PrivateKey.generate()
        user.demand(maker)
        with pytest.raises(VerificationError):
            await user.start(maker.name.at(maker.image.descriptor.digest))


@in_loop
async def test_a_list_is_read_ahead_only_if_a_key_of_the_policy_signed_it(
    tmp_path: Path, registry: Registry
) -> None:
    maker = Maker(tmp_path, registry)
    built = artifact.build(maker.store, maker.image, "converted")
    artifact.remember(maker.store, maker.image.descriptor.digest, built.digest, [3, 1, 2])
    await maker.send()
    beside = maker.beside()
    assert set(beside) == {artifact.TYPE, artifact.TOUCHED}
    await maker.sign(maker.image.descriptor.digest, beside[artifact.TYPE])

    async def known(name: str) -> tuple[list[int], tuple[str, ...]]:
        with User(tmp_path, name) as user:
            if name != "unarmed":
                user.demand(maker)
            started = await user.start(maker.name)
            found = artifact.find(user.store, started.image)
            ahead = artifact.remembered(user.store, started.image, found.digest)
            (run,) = (user.store.root / "lazy").glob("run-*")
            assert json.loads((run / "spec.json").read_text())["prefetch"] == ahead
            return ahead, started.notes

    for name in ("unarmed", "unsigned"):
        ahead, notes = await known(name)
        assert ahead == []
        assert artifact.TOUCHED in notes[0]
    await maker.sign(beside[artifact.TOUCHED])
    assert await known("signed") == ([3, 1, 2], ())
    registry.faults.tampered = {
        beside[artifact.TOUCHED]: maker.store.read(beside[artifact.TOUCHED])[:-2] + b" }"
    }
    ahead, notes = await known("tampered")
    assert ahead == []
    assert "sends content" in notes[0]


def make_key(path: Path) -> str:
    path.write_text(os.urandom(32).hex())
    path.chmod(0o600)
    return f"file:{path}"


@in_loop
async def test_an_encrypted_image_is_read_by_who_has_the_key(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(tmp_path, registry)
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    name = Reference.parse(f"{registry.host}/secret:1")
    artifact.build_encrypted(maker.store, maker.image, name, open_key(key))
    assert collect(maker.store).removed == ()
    await maker.send(name)
    # Nothing of it is at the registry, but for the sizes of its parts.
    at_registry = [*registry.blobs.values(), *(data for _, data in registry.manifests.values())]
    digest = maker.image.descriptor.digest
    for clue in (SECRET[:40], BIG[1000:1100], b"secret-names", digest.encode()):
        assert all(clue not in data for data in at_registry)

    for given, error in (("", DeniedError), (other, DeniedError), ("file:/none", UnavailableError)):
        monkeypatch.setenv("BEDSTONE_IMAGE_KEYS", given)
        with User(tmp_path, f"without-{len(given)}") as user, pytest.raises(error):
            await user.start(name)
    monkeypatch.setenv("BEDSTONE_IMAGE_KEYS", f"{other} {key}")
    with User(tmp_path) as user:
        started = await user.start(name.at(open_image(maker.store, name).descriptor.digest))
        assert started.image.config.rootfs == maker.image.config.rootfs, "as the original is run"
        read = await asyncio.to_thread((started.path / "secret-names/in").read_bytes)
        assert read == SECRET
        assert await asyncio.to_thread((started.path / "big-too").read_bytes) == BIG
        (run,) = (user.store.root / "lazy").glob("run-*")
        on_disk = [path for path in user.home.rglob("*") if path.is_file()]
        on_disk = [path for path in on_disk if not path.is_relative_to(run / "root")]
        assert [path for path in on_disk if path.parent.parent.name == "chunks"]
        for path in on_disk:
            if not path.is_relative_to(run / "blobs"):
                data = path.read_bytes()
                assert SECRET[:40] not in data, path
                assert BIG[1000:1100] not in data, path
                assert b"secret-names" not in data, path
    monkeypatch.setenv("BEDSTONE_IMAGE_KEYS", other)
    with User(tmp_path) as user, pytest.raises(DeniedError, match="encrypted with key"):
        await user.start(name)


@in_loop
async def test_a_plain_lazy_image_of_an_encrypted_image_is_not_mounted(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may send to the repository could put other files into it otherwise, without a key."""
    maker = Maker(tmp_path, registry)
    key = make_key(tmp_path / "key")
    monkeypatch.setenv("BEDSTONE_IMAGE_KEYS", key)
    name = Reference.parse(f"{registry.host}/app:secret")
    root = artifact.build_encrypted(maker.store, maker.image, name, open_key(key))
    plain = artifact.build(maker.store, maker.image, "converted")
    await maker.send()
    forged = json.loads(maker.store.read(plain.digest))
    forged["subject"]["digest"], forged["subject"]["size"] = root.digest, root.size
    maker.store.attach(root.digest, artifact.KIND, root)  # so that the genuine one is not sent
    await maker.send(name)
    registry.add_manifest("app", forged, "application/vnd.oci.image.manifest.v1+json")
    with User(tmp_path) as user:
        with pytest.raises(UnavailableError, match="the other is not"):
            await user.start(name)
        assert not [*(user.store.root / "lazy").glob("run-*")]


@in_loop
async def test_a_chunk_of_an_encrypted_image_that_was_changed_or_moved_is_an_error(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(tmp_path, registry)
    key = make_key(tmp_path / "key")
    monkeypatch.setenv("BEDSTONE_IMAGE_KEYS", key)
    name = Reference.parse(f"{registry.host}/secret:1")
    artifact.build_encrypted(maker.store, maker.image, name, open_key(key))
    await maker.send(name)
    image = open_image(maker.store, name)
    found = artifact.find(maker.store, image)
    blob = next(one.digest for one in found.manifest.layers if one.media_type == artifact.CHUNKS)
    data = registry.blobs[blob]
    size = 256 * 1024 + 16
    # The first two whole chunks of `big` change places.
    first = artifact.load(maker.store, found).table.place(1).offset
    moved = data[:first] + data[first + size : first + 2 * size] + data[first : first + size]
    registry.faults.tampered = {blob: moved + data[first + 2 * size :]}
    with User(tmp_path) as user:
        started = await user.start(name)
        read = await asyncio.to_thread((started.path / "secret-names/in").read_bytes)
        assert read == SECRET
        with pytest.raises(OSError, match="error"):
            await asyncio.to_thread((started.path / "big").read_bytes)
        (run,) = (user.store.root / "lazy").glob("run-*")
        assert "chunk rejected" in (run / "events.jsonl").read_text()
    # The parts, too, are sealed for this image alone.
    parts = {one.media_type: one.digest for one in found.manifest.layers}
    assert found.seal is not None
    cipher = found.seal.open()
    with pytest.raises(VerificationError):
        cipher.open(artifact.TABLE, 0, maker.store.read(parts[artifact.METADATA], 1 << 30))
    for wrong in ("nonsense", "file:relative-and-not-there", "vault:x"):
        with pytest.raises((InvalidError, NotFoundError)):
            open_key(wrong)
