"""Pulling and pushing, against a real registry on loopback that fails as it is told."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bedstone.errors import (
    DeniedError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from bedstone.images import requests
from bedstone.images.auth import Authorizer, challenges
from bedstone.images.collection import collect
from bedstone.images.credentials import Credentials, DockerKeyring, NoKeyring
from bedstone.images.endpoints import Endpoint, Endpoints, from_environment
from bedstone.images.models import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Platform,
)
from bedstone.images.opening import open_image
from bedstone.images.pulling import Advanced, Arrived, Event, Image, Limits, Resolved, pull
from bedstone.images.pushing import Sending, Sent, push
from bedstone.images.reference import Reference
from bedstone.images.registry import RegistryClient
from bedstone.images.requests import Patience
from bedstone.images.store import ContentStore
from bedstone.testing.registry import Registry, running_registry

_QUICK = Patience(attempts=3, first_wait=0.01, read_timeout=10)
_AMD = Platform(os="linux", architecture="amd64")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "images")


def publish(
    registry: Registry, name: str = "app", tag: str | None = "1", size: int = 300_000, seed: int = 0
) -> dict[str, Any]:
    """An image of three layers; its manifest's descriptor."""
    layers = [bytes([seed, number]) * (size // 2) for number in range(3)]
    return registry.add_image(name, layers, tag, Cmd=["sh"])


@dataclass
class Puller:
    store: ContentStore
    keyring: Any = field(default_factory=NoKeyring)
    endpoints: Endpoints = field(default_factory=Endpoints)

    def __call__(self, text: str, events: list[Event] | None = None, **options: Any) -> Image:
        async def run() -> Image:
            async with RegistryClient(self.endpoints, self.keyring, _QUICK) as client:
                return await pull(
                    self.store,
                    client,
                    Reference.parse(text),
                    tell=(events if events is not None else []).append,
                    **{"platform": _AMD, **options},
                )

        try:
            return asyncio.run(run())
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            assert isinstance(first, Error), first
            raise first from group


@pytest.fixture
def puller(store: ContentStore) -> Puller:
    return Puller(store)


def test_an_image_is_fetched_named_and_can_be_opened(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    descriptor = publish(registry)
    events: list[Event] = []
    image = puller(f"{registry.host}/app:1", events)
    assert image.root.digest == descriptor["digest"]
    opened = open_image(store, image.reference, _AMD)
    assert opened.config.config.cmd == ("sh",)
    for layer, _ in opened.layers:
        store.verify(layer.digest)
    assert isinstance(events[0], Resolved)
    assert len(events[0].content) == 4
    assert {e.digest for e in events if isinstance(e, Arrived)} == {
        one.digest for one in events[0].content
    }
    assert max(e.done for e in events if isinstance(e, Advanced)) == 300_000
    assert store.leases() == []
    assert collect(store).removed == ()


def test_what_is_there_is_not_fetched_again(registry: Registry, puller: Puller) -> None:
    publish(registry)
    puller(f"{registry.host}/app:1")
    before = registry.counted("GET", "/blobs/")
    events: list[Event] = []
    puller(f"{registry.host}/app:1", events)
    assert registry.counted("GET", "/blobs/") == before
    assert all(e.cached for e in events if isinstance(e, Arrived))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(
    registry: Registry, puller: Puller, store: ContentStore, *, ranges: bool
) -> None:
    publish(registry)
    registry.faults.cut_after = 100_000
    registry.faults.cuts = 4 if ranges else 1
    registry.faults.ranges = ranges
    image = puller(f"{registry.host}/app:1", parallel=1)
    assert open_image(store, image.reference, _AMD).manifest.layers
    ranged = [asked.range for asked in registry.requests if asked.range]
    assert ranged
    if ranges:
        assert registry.sent() < 3 * 300_000 + 4000
    for layer in image.manifests[0][1].layers:
        store.verify(layer.digest)


def test_a_download_that_was_given_up_goes_on_with_the_next_pull(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    publish(registry)
    registry.faults.cut_after = 0
    registry.faults.cuts = 10_000
    with pytest.raises(UnavailableError):
        puller(f"{registry.host}/app:1")
    registry.faults.cut_after = 200_000
    registry.faults.cuts = 0
    registry.faults.bytes_per_second = 400_000

    async def abandon() -> None:
        async with RegistryClient(Endpoints(), NoKeyring(), _QUICK) as client:
            async with asyncio.timeout(0.6):
                await pull(store, client, Reference.parse(f"{registry.host}/app:1"), platform=_AMD)

    with pytest.raises(TimeoutError):
        asyncio.run(abandon())
    partial = store.usage().partial_bytes
    assert partial > 0
    registry.faults.bytes_per_second = None
    sent = registry.sent()
    puller(f"{registry.host}/app:1")
    assert registry.sent() - sent <= 3 * 300_000 + 4000 - partial


def test_content_that_is_not_what_its_digest_says_is_refused(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    descriptor = publish(registry)
    image = json.loads(registry.manifests["app", descriptor["digest"]][1])
    layer = image["layers"][0]["digest"]
    registry.faults.tampered[layer] = b"x" * 300_000
    with pytest.raises(VerificationError, match="expected sha256"):
        puller(f"{registry.host}/app:1")
    assert not store.has(layer)
    assert store.names() == []
    registry.faults.tampered[layer] = b"x" * 900_000
    with pytest.raises(VerificationError, match="more than the 300000 bytes"):
        puller(f"{registry.host}/app:1")
    registry.faults.tampered.clear()
    puller(f"{registry.host}/app:1")


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    registry: Registry, puller: Puller
) -> None:
    digest = publish(registry)["digest"]
    registry.faults.tampered[digest] = registry.manifests["app", digest][1] + b" "
    with pytest.raises(VerificationError):
        puller(f"{registry.host}/app@{digest}")


def test_a_registry_that_is_busy_is_asked_again(registry: Registry, puller: Puller) -> None:
    publish(registry)
    registry.faults.statuses = [503, 429, 500]
    puller(f"{registry.host}/app:1")
    registry.faults.statuses = []


def test_a_registry_that_stays_busy_is_told_with_what_it_says(
    registry: Registry, puller: Puller
) -> None:
    publish(registry)
    registry.faults.statuses = [503] * 100
    with pytest.raises(UnavailableError, match=r"503.*as the test asked"):
        puller(f"{registry.host}/app:1")


def test_what_is_not_there_is_told(registry: Registry, puller: Puller) -> None:
    publish(registry)
    with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
        puller(f"{registry.host}/app:2")
    arm = {"platform": {"os": "linux", "architecture": "arm64"}}
    index = {"schemaVersion": 2, "manifests": [{**publish(registry, tag=None), **arm}]}
    registry.add_manifest("app", index, OCI_INDEX, "many")
    with pytest.raises(NotFoundError, match="only for linux/arm64"):
        puller(f"{registry.host}/app:many")


def test_a_registry_that_is_down_is_told(puller: Puller, registry: Registry) -> None:
    registry.faults.down = True
    with pytest.raises(UnavailableError, match=r"no answer from 127\.0\.0\.1"):
        puller(f"{registry.host}/app:1")


def test_content_is_not_known_by_a_name_that_it_did_not_come_from(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    digest = publish(registry)["digest"]
    puller(f"{registry.host}/app:1")
    reference = Reference.parse(f"{registry.host}/app@{digest}")
    assert open_image(store, reference, _AMD).root.digest == digest
    registry.faults.down = True
    assert puller(str(reference)).root.digest == digest
    registry.faults.down = False
    other = Reference.parse(f"{registry.host}/trusted@{digest}")
    with pytest.raises(NotFoundError):
        open_image(store, other, _AMD)
    with pytest.raises(NotFoundError):
        puller(str(other))


def many(registry: Registry) -> None:
    entries = []
    for number, name in enumerate(("amd64", "arm64")):
        entry = publish(registry, tag=None, seed=number + 1, size=1000)
        entries.append({**entry, "platform": {"os": "linux", "architecture": name}})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    registry.add_manifest("app", index, OCI_INDEX, "many")


def test_of_an_index_the_platform_is_fetched_or_all(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    many(registry)
    text = f"{registry.host}/app:many"
    assert len(puller(text).manifests) == 1
    arm = Platform(os="linux", architecture="arm64")
    with pytest.raises(NotFoundError, match="not for linux/arm64"):
        open_image(store, Reference.parse(text), arm)
    assert len(puller(text, every_platform=True).manifests) == 2
    assert open_image(store, Reference.parse(text), arm).manifest.layers


@pytest.mark.parametrize(
    ("limits", "says"),
    [(Limits(layer_bytes=1000), "at most 1000"), (Limits(image_bytes=1000), "at most 1000")],
)
def test_an_image_that_weighs_too_much_is_refused_before_it_is_fetched(
    registry: Registry, puller: Puller, limits: Limits, says: str
) -> None:
    publish(registry)
    with pytest.raises(InvalidError, match=says):
        puller(f"{registry.host}/app:1", limits=limits)
    assert registry.counted("GET", "/blobs/") == 0


def test_a_document_without_end_is_not_read_to_its_end(registry: Registry, puller: Puller) -> None:
    registry.add_manifest("app", b" " * (5 << 20), OCI_MANIFEST, "1")
    with pytest.raises(InvalidError, match="more than"):
        puller(f"{registry.host}/app:1")


def test_a_config_that_speaks_of_other_layers_is_refused(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    digest = publish(registry)["digest"]
    manifest = json.loads(registry.manifests["app", digest][1])
    registry.add_manifest("app", {**manifest, "layers": manifest["layers"][:2]}, OCI_MANIFEST, "2")
    with pytest.raises(InvalidError, match="2 layers, and its config speaks of 3"):
        puller(f"{registry.host}/app:2")
    assert store.names() == []


def test_two_pulls_at_once_fetch_once(registry: Registry, store: ContentStore) -> None:
    publish(registry)

    async def both() -> None:
        async with RegistryClient(Endpoints(), NoKeyring(), _QUICK) as client:
            await asyncio.gather(
                *(
                    pull(store, client, Reference.parse(f"{registry.host}/app:1"), platform=_AMD)
                    for _ in range(2)
                )
            )

    registry.faults.bytes_per_second = 3_000_000
    asyncio.run(both())
    assert registry.counted("GET", "/blobs/") == 4


# Who may


class Ring:
    def __init__(self, *found: Credentials) -> None:
        self.found = found
        self.asked: list[str] = []

    def find(self, registry: str) -> Credentials | None:
        self.asked.append(registry)
        return self.found[0] if self.found else None


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
def test_credentials_open_what_is_closed(scheme: str, store: ContentStore) -> None:
    with running_registry(user="ann", password="pass:word", scheme=scheme) as registry:
        publish(registry)
        text = f"{registry.host}/app:1"
        ring = Ring(Credentials("ann", "pass:word"))
        Puller(store, ring)(text)
        assert ring.asked == [registry.host]
        for wrong in (Ring(Credentials("ann", "wrong")), Ring()):
            with pytest.raises(DeniedError) as raised:
                Puller(store, wrong)(text)
            assert "wrong" not in raised.value.message or scheme == "basic"
            assert "pass:word" not in raised.value.message
            assert raised.value.hint is not None
            assert "docker login" in raised.value.hint or "credentials" in raised.value.hint


def test_an_identity_token_is_exchanged(store: ContentStore) -> None:
    with running_registry(user="ann", password="refresh") as registry:
        publish(registry)
        ring = Ring(Credentials(identity_token="refresh"))
        Puller(store, ring)(f"{registry.host}/app:1")
        assert registry.counted("POST", "/token") == 1
        assert registry.tokens


def test_a_token_that_ran_out_is_renewed(store: ContentStore) -> None:
    with running_registry(token_seconds=0.05) as registry:
        publish(registry)
        registry.faults.bytes_per_second = 2_000_000
        Puller(store)(f"{registry.host}/app:1", parallel=1)
        assert len(registry.tokens) > 1


def test_challenges_read() -> None:
    assert challenges('Bearer realm="https://a/t",service="x", Basic realm="a, \\"b\\""') == [
        challenges('Bearer realm="https://a/t", service=x')[0],
        challenges('Basic realm="a, \\"b\\""')[0],
    ]
    assert challenges("") == []
    assert challenges('basic realm="x')[0].parameters == {}


def test_a_registry_may_not_have_credentials_sent_without_tls() -> None:
    async def run() -> None:
        async with httpx.AsyncClient() as http:
            authorizer = Authorizer(http, Ring(Credentials("ann", "secret")))
            demand = 'Bearer realm="http://127.0.0.1:1/token"'
            await authorizer.answer(Endpoint("https://r.io", "r.io"), "s", demand, None)

    with pytest.raises(DeniedError, match="expected https"):
        asyncio.run(run())


def test_docker_keeps_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert DockerKeyring().find("r.io") is None

    def auths(**entries: Any) -> None:
        path.write_text(json.dumps({"auths": entries}))

    pair = base64.b64encode(b"ann:a:b").decode()
    auths(**{"https://r.io/v1/": {"auth": pair}, "https://index.docker.io/v1/": {"auth": pair}})
    assert DockerKeyring().find("r.io") == Credentials("ann", "a:b")
    assert DockerKeyring().find("docker.io") == Credentials("ann", "a:b")
    assert DockerKeyring().find("evil.r.io") is None
    assert "a:b" not in repr(DockerKeyring().find("r.io"))
    auths(**{"r.io": {"auth": "%"}})
    with pytest.raises(InvalidError, match="base64"):
        DockerKeyring().find("r.io")
    path.write_text("{")
    with pytest.raises(InvalidError, match="cannot read"):
        DockerKeyring().find("r.io")


def test_docker_helpers_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread key\ncase $key in\nr.io) echo \'{"Username":"ann","Secret":"s"}\';;\n'
        't.io) echo \'{"Username":"<token>","Secret":"t"}\';;\n'
        "bad.io) exit 3;;\n*) echo credentials not found; exit 1;;\nesac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": {"x.io": "none"}, "credsStore": "test"}))
    ring = DockerKeyring(path)
    assert ring.find("r.io") == Credentials("ann", "s")
    assert ring.find("t.io") == Credentials(identity_token="t")
    assert ring.find("unknown.io") is None
    for name in ("bad.io", "x.io"):
        with pytest.raises(UnavailableError, match="docker-credential"):
            ring.find(name)
    path.write_text(json.dumps({"credsStore": "../test"}))
    with pytest.raises(InvalidError):
        ring.find("r.io")


async def nothing() -> AsyncIterator[bytes]:
    yield b""


def test_nobody_is_led_away_from_tls() -> None:
    async def run() -> None:
        away = httpx.Response(307, headers={"Location": "http://b.io/evil"}, content=nothing())
        http = httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _: away),
            follow_redirects=True,
            event_hooks={"response": [requests._stay_private]},
        )
        async with RegistryClient(Endpoints(), NoKeyring(), _QUICK, http) as client:
            await client.document(Reference.parse("a.io/app:1"))

    with pytest.raises(DeniedError, match="without TLS"):
        asyncio.run(run())


def test_credentials_are_not_sent_where_a_token_service_leads() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(f"{request.url.host} {request.content.decode()}")
        headers = {"Location": "https://evil.io/token"}
        return httpx.Response(307, headers=headers, content=nothing())

    async def run() -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, follow_redirects=True) as http:
            authorizer = Authorizer(http, Ring(Credentials(identity_token="secret")))
            demand = 'Bearer realm="https://t.io/token"'
            await authorizer.answer(Endpoint("https://r.io", "r.io"), "s", demand, None)

    with pytest.raises(UnavailableError, match="status 307"):
        asyncio.run(run())
    assert len(seen) == 1


# Mirrors


def test_mirrors_are_asked_first_and_the_registry_when_they_fail(
    registry: Registry, store: ContentStore
) -> None:
    publish(registry)
    with running_registry() as mirror, running_registry() as empty:
        publish(mirror)
        endpoints = Endpoints({registry.host: [empty.url, mirror.url]})
        puller = Puller(store, endpoints=endpoints)
        puller(f"{registry.host}/app:1")
        assert registry.requests == []
        assert empty.requests
        second = ContentStore(store.root.parent / "second")
        mirror.faults.statuses = [503] * 100
        Puller(second, endpoints=endpoints)(f"{registry.host}/app:1")
        assert registry.requests


def test_a_mirror_that_lies_is_passed_by(registry: Registry, store: ContentStore) -> None:
    digest = publish(registry)["digest"]
    with running_registry() as mirror:
        publish(mirror)
        layer = json.loads(registry.manifests["app", digest][1])["layers"][0]["digest"]
        mirror.faults.tampered[layer] = b"lies" * 75_000
        puller = Puller(store, endpoints=Endpoints({registry.host: [mirror.url]}))
        puller(f"{registry.host}/app:1")
        store.verify(layer)
        assert 300_000 <= registry.sent() < 301_000


def test_what_a_mirror_that_lies_has_begun_is_not_held_against_the_registry(
    registry: Registry, store: ContentStore
) -> None:
    digest = publish(registry)["digest"]
    with running_registry() as mirror:
        publish(mirror)
        layer = json.loads(registry.manifests["app", digest][1])["layers"][0]["digest"]
        mirror.faults.tampered[layer] = b"lies" * 75_000
        mirror.faults.cut_after, mirror.faults.cuts = 100_000, 1
        mirror.faults.ranges = False
        mirror.faults.statuses = []

        async def run() -> None:
            endpoints = Endpoints({registry.host: [mirror.url]})
            patience = Patience(attempts=1, first_wait=0.01)
            async with RegistryClient(endpoints, NoKeyring(), patience) as client:
                reference = Reference.parse(f"{registry.host}/app:1")
                descriptor = Descriptor(media_type=OCI_LAYER, digest=layer, size=300_000)
                with store.writer(layer, 300_000) as writer:
                    await client.blob(reference, descriptor, writer)

        asyncio.run(run())
        assert mirror.sent() >= 100_000
        store.verify(layer)


def test_where_registries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def urls(text: str, endpoints: Endpoints) -> list[str]:
        return [endpoint.url for endpoint in endpoints.of(Reference.parse(text))]

    assert urls("python", Endpoints()) == ["https://registry-1.docker.io"]
    assert urls("r.io:5000/a", Endpoints()) == ["https://r.io:5000"]
    assert urls("localhost:1/a", Endpoints()) == ["http://localhost:1"]
    assert urls("[::1]:1/a", Endpoints()) == ["http://[::1]:1"]
    assert urls("127.0.0.1.evil.io/a", Endpoints()) == ["https://127.0.0.1.evil.io"]
    assert urls("r.io/a", Endpoints(insecure=frozenset({"r.io"}))) == ["http://r.io"]
    monkeypatch.setenv("BEDSTONE_REGISTRY_MIRRORS", "docker.io=https://m.io/ r.io=http://m2.io")
    found = from_environment(["docker.io=https://first.io"])
    assert urls("python", found) == [
        "https://first.io",
        "https://m.io",
        "https://registry-1.docker.io",
    ]
    for wrong in ("docker.io", "docker.io=ftp://x", "docker.io=https://u:p@x", "docker.io="):
        with pytest.raises(InvalidError, match="mirror"):
            from_environment([wrong])


# Pushing


def pushed(store: ContentStore, source: str, target: str | None = None) -> list[Sent | Sending]:
    told: list[Sent | Sending] = []

    async def run() -> None:
        async with RegistryClient(Endpoints(), NoKeyring(), _QUICK) as client:
            await push(
                store,
                client,
                Reference.parse(source),
                Reference.parse(target) if target else None,
                tell=told.append,
            )

    asyncio.run(run())
    return told


def test_an_image_is_pushed_and_pulled_back(
    registry: Registry, puller: Puller, store: ContentStore, tmp_path: Path
) -> None:
    many(registry)
    source = f"{registry.host}/app:many"
    puller(source, every_platform=True)
    with running_registry(user=None, scheme="none") as other:
        target = f"{other.host}/copy:1"
        told = pushed(store, source, target)
        assert {one.how for one in told if isinstance(one, Sent)} == {"sent"}
        back = Puller(ContentStore(tmp_path / "other"))(target, every_platform=True)
        assert back.root.digest == store.resolve(Reference.parse(source)).digest
        again = pushed(store, source, target)
        assert {one.how for one in again if isinstance(one, Sent)} == {"there"}


def test_content_of_another_repository_is_mounted(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    publish(registry)
    source = f"{registry.host}/app:1"
    puller(source)
    told = pushed(store, source, f"{registry.host}/other/app:2")
    assert {one.how for one in told if isinstance(one, Sent)} == {"mounted"}
    assert ("other/app", "2") in registry.tags


def test_what_is_not_all_here_is_not_pushed(
    registry: Registry, puller: Puller, store: ContentStore
) -> None:
    many(registry)
    source = f"{registry.host}/app:many"
    puller(source)
    with pytest.raises(NotFoundError, match="not here for linux/arm64"):
        pushed(store, source, f"{registry.host}/copy:1")
