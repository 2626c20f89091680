"""Certificates are asked for, verified, kept, renewed; secrets reach the proxy as they change."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.discovery.v3 import (  # type: ignore[import-untyped]
    discovery_pb2 as discovery,
)

from bedstone.model.messages import Certificate, CertificateRequest
from bedstone.node import sds
from bedstone.node.certificates import Certificates
from bedstone.trust.authority import Authority
from bedstone.trust.svid import Svid

WEB = "spiffe://test.internal/shop/web"


class Desk:
    """The server's side: signs what it is asked, as long as it is open."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.open(folder / "authority")
        self.asked: list[CertificateRequest] = []
        self.got: list[Svid] = []
        self.open = True
        self.now = time.time()
        self.certificates = Certificates(
            folder / "identities", self.take, self.got.append, clock=lambda: self.now
        )

    def take(self, request: CertificateRequest) -> bool:
        if self.open:
            self.asked.append(request)
        return self.open

    def answer(self, seconds: float = 3600) -> None:
        request = self.asked[-1]
        issued = self.authority.sign(
            request.request,
            request.spiffe_id,
            now=dt.datetime.fromtimestamp(self.now, dt.UTC),
            lifetime=dt.timedelta(seconds=seconds),
        )
        self.certificates.answer(
            Certificate(id=request.id, chain=issued.chain, bundle=self.authority.bundle)
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_each_request_has_a_new_key(desk: Desk) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.answer(100)
    desk.now += 60
    desk.certificates._ask()
    desk.answer(100)
    assert len(desk.asked) == 2
    assert desk.got[0].key != desk.got[1].key
    assert desk.certificates.get(WEB) == desk.got[1]


def test_nothing_is_asked_before_half_of_the_life(desk: Desk) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.answer(100)
    assert desk.certificates._ask() == pytest.approx(50, abs=1.5)
    desk.now += 48
    desk.certificates._ask()
    assert len(desk.asked) == 1
    desk.now += 4
    desk.certificates._ask()
    assert len(desk.asked) == 2


def test_without_a_server_the_old_one_serves_until_it_ends(desk: Desk) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.answer(100)
    desk.open = False
    desk.now += 80
    assert desk.certificates._ask() is None, "it waits for a connection"
    assert desk.certificates.get(WEB) is not None
    desk.now += 30
    assert desk.certificates.get(WEB) is None, "it has run out"
    desk.open = True
    desk.certificates.connected()
    desk.certificates._ask()
    desk.answer()
    assert desk.certificates.get(WEB) is not None


def test_refusal_is_retried_later_and_later(desk: Desk) -> None:
    desk.certificates.want({WEB})
    pauses = []
    for _ in range(8):
        desk.certificates._ask()
        refusal = Certificate(id=desk.asked[-1].id, error="denied", message="not placed here")
        desk.certificates.answer(refusal)
        asked = len(desk.asked)
        pause = desk.certificates._ask()
        assert len(desk.asked) == asked, "not at once"
        assert pause is not None
        pauses.append(pause)
        desk.now += pause + 0.001
    assert pauses[:3] == pytest.approx([0.2, 0.4, 0.8], abs=0.01)
    assert pauses[-1] == pytest.approx(10.0, abs=0.01)


def test_silence_is_asked_again_with_a_new_id(desk: Desk) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.now += 4
    desk.certificates._ask()
    assert len({request.id for request in desk.asked}) == 2


def test_answer_for_another_request_is_not_taken(desk: Desk) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.certificates.answer(Certificate(id="other", chain="x", bundle="y"))
    assert desk.certificates.get(WEB) is None
    desk.certificates.answer(Certificate(id=desk.asked[0].id, chain="junk", bundle="y"))
    assert desk.certificates.get(WEB) is None, "what does not verify is not used"


def test_kept_over_a_restart_and_deleted_when_not_wanted(desk: Desk, tmp_path: Path) -> None:
    desk.certificates.want({WEB})
    desk.certificates._ask()
    desk.answer()
    again: list[Svid] = []
    later = Certificates(tmp_path / "identities", desk.take, again.append)
    later.want({WEB})
    assert later.get(WEB) == desk.certificates.get(WEB)
    assert again == [desk.certificates.get(WEB)], "whoever serves it is told"
    later.want(set())
    assert later.get(WEB) is None
    assert list((tmp_path / "identities").iterdir()) == []


# The secret discovery service.


def svid_of(authority: Authority, seconds: float = 3600) -> Svid:
    from bedstone.trust.svid import certificate_request, new_key

    key = new_key()
    issued = authority.sign(
        certificate_request(key, WEB), WEB, lifetime=dt.timedelta(seconds=seconds)
    )
    return Svid(WEB, key, issued.chain, authority.bundle)


class Feed:
    """Requests of a stream, one after another."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, request: Any) -> None:
        self._queue.put_nowait(request)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield await self._queue.get()


def with_sds(folder: Path, method: str, kinds: tuple[Any, Any], play: Callable[..., Any]) -> None:
    async def run() -> None:
        secrets = sds.Secrets()
        path = folder / "sds.sock"
        server = await sds.serve(secrets, path)
        assert path.stat().st_mode & 0o777 == 0o600
        try:
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel, asyncio.timeout(10):
                feed = Feed()
                call: Any = channel.stream_stream(
                    f"/envoy.service.secret.v3.SecretDiscoveryService/{method}",
                    request_serializer=kinds[0].SerializeToString,
                    response_deserializer=kinds[1].FromString,
                )(aiter(feed))
                await play(secrets, feed, call)
                call.cancel()
        finally:
            await server.stop(0)

    asyncio.run(run())


async def silent(call: Any, pause: float = 0.2) -> bool:
    """Whether nothing comes; the read that waits is left for later."""
    task = asyncio.ensure_future(call.read())
    done, _ = await asyncio.wait((task,), timeout=pause)
    call.pending = task
    return not done


def test_delta_answers_when_a_secret_comes_and_pushes_renewals(tmp_path: Path, desk: Desk) -> None:
    async def play(secrets: sds.Secrets, feed: Feed, call: Any) -> None:
        feed.put(discovery.DeltaDiscoveryRequest(resource_names_subscribe=[WEB, "bundle"]))
        secrets.put(sds.bundle_secret("test.internal", desk.authority.bundle))
        first = await call.read()
        assert [resource.name for resource in first.resources] == ["bundle"]
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        second = await call.read()
        assert [resource.name for resource in second.resources] == [WEB]
        feed.put(discovery.DeltaDiscoveryRequest(response_nonce=second.nonce))
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        third = await call.read()
        assert [resource.name for resource in third.resources] == [WEB]
        assert third.resources[0].version != second.resources[0].version
        secrets.put(sds.bundle_secret("test.internal", desk.authority.bundle))
        assert await silent(call), "the same content is not sent again"
        feed.put(discovery.DeltaDiscoveryRequest(resource_names_unsubscribe=[WEB]))
        await asyncio.sleep(0.1)
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        done, _ = await asyncio.wait((call.pending,), timeout=0.2)
        assert not done, "nobody wants it any more"

    kinds = (discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse)
    with_sds(tmp_path, "DeltaSecrets", kinds, play)


def test_delta_reconnect_gets_only_what_it_lacks(tmp_path: Path, desk: Desk) -> None:
    async def play(secrets: sds.Secrets, feed: Feed, call: Any) -> None:
        secrets.put(sds.bundle_secret("test.internal", desk.authority.bundle))
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        found = secrets.get("bundle")
        assert found is not None
        feed.put(
            discovery.DeltaDiscoveryRequest(
                resource_names_subscribe=[WEB, "bundle"],
                initial_resource_versions={"bundle": found[0]},
            )
        )
        answer = await call.read()
        assert [resource.name for resource in answer.resources] == [WEB]

    kinds = (discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse)
    with_sds(tmp_path, "DeltaSecrets", kinds, play)


def test_state_of_the_world_answers_and_pushes(tmp_path: Path, desk: Desk) -> None:
    async def play(secrets: sds.Secrets, feed: Feed, call: Any) -> None:
        feed.put(discovery.DiscoveryRequest(resource_names=[WEB]))
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        first = await call.read()
        assert len(first.resources) == 1
        feed.put(
            discovery.DiscoveryRequest(
                resource_names=[WEB],
                version_info=first.version_info,
                response_nonce=first.nonce,
            )
        )
        assert await silent(call), "an acknowledgement asks for nothing"
        secrets.put(sds.certificate_secret(svid_of(desk.authority)))
        second = await call.pending
        assert second.version_info != first.version_info

    kinds = (discovery.DiscoveryRequest, discovery.DiscoveryResponse)
    with_sds(tmp_path, "StreamSecrets", kinds, play)
