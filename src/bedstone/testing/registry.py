"""A small real registry on loopback (OCI distribution-spec 1.1), with faults on demand.

It keeps everything in memory. It speaks to any client: skopeo's copies to and from it are among its
tests. What tests change while it runs is in `Registry.faults`; what was asked of it, in
`Registry.requests`.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

_BLOCK = 16 << 10
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<rest>.+)")
_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<id>[0-9a-f]*)\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Faults:
    """What goes wrong, from the next request on.

    Attributes:
        bytes_per_second: of all answers together; None for as fast as it can.
        cut_after: bytes of a blob's answer after which the connection is closed.
        cuts: how many answers are cut so.
        tampered: content to send in place of what has a digest.
        statuses: statuses to answer next, in order, in place of the answers to requests for blobs.
        retry_after: seconds that such an answer asks for.
        ranges: whether ranges are known.
        referrers: whether the list of an image's artifacts is known.
        down: whether connections are closed without an answer.
    """

    bytes_per_second: float | None = None
    cut_after: int = 0
    cuts: int = 0
    tampered: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    retry_after: int | None = None
    ranges: bool = True
    referrers: bool = True
    down: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its method and path, the header `Range`, and bytes of content sent back."""

    method: str
    path: str
    range: str
    sent: int


class Registry:
    """The content of a registry and its server.

    Args:
        user: demands this name for tokens; None admits everybody.
        password: its password.
        scheme: how clients authenticate: `bearer`, `basic`, or `none`.
        token_seconds: how long a token is valid.
    """

    def __init__(
        self,
        *,
        user: str | None = None,
        password: str = "",
        scheme: str = "bearer",
        token_seconds: float = 300.0,
    ) -> None:
        self.user = user
        self.password = password
        self.scheme = scheme
        self.token_seconds = token_seconds
        self.faults = Faults()
        self.requests: list[Asked] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.linked: set[tuple[str, str]] = set()
        self.uploads: dict[str, bytearray] = {}
        self.tokens: dict[str, tuple[frozenset[str], float]] = {}
        self.lock = threading.Lock()
        self._free_at = 0.0
        self._server = _Server(self)
        host, port = self._server.server_address[:2]
        self.host = f"{host!s}:{port}"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self.host}"

    def add_blob(self, name: str, data: bytes) -> dict[str, Any]:
        """Put content in a repository; a descriptor without its media type."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with self.lock:
            self.blobs[digest] = data
            self.linked.add((name, digest))
        return {"digest": digest, "size": len(data)}

    def add_manifest(
        self, name: str, document: dict[str, Any] | bytes, media_type: str, tag: str | None = None
    ) -> dict[str, Any]:
        """Put a manifest or index in a repository; its descriptor."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with self.lock:
            self.manifests[name, digest] = media_type, data
            if tag:
                self.tags[name, tag] = digest
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_image(
        self, name: str, layers: Sequence[bytes], tag: str | None = None, **config: Any
    ) -> dict[str, Any]:
        """Put an image of uncompressed layers in a repository; its manifest's descriptor."""
        described = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", **self.add_blob(name, layer)}
            for layer in layers
        ]
        body = {
            "os": "linux",
            "architecture": "amd64",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in described]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **self.add_blob(name, json.dumps(body).encode()),
            },
            "layers": described,
        }
        return self.add_manifest(name, manifest, _OCI_MANIFEST, tag)

    def sent(self) -> int:
        """Bytes of content that were sent."""
        return sum(asked.sent for asked in self.requests)

    def counted(self, method: str, part: str) -> int:
        """How many requests of a method had that in their path."""
        return sum(asked.method == method and part in asked.path for asked in self.requests)

    def take(self, count: int) -> None:
        """Wait until that many bytes may be sent."""
        rate = self.faults.bytes_per_second
        if rate is None:
            return
        with self.lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / rate
            wait = self._free_at - now
        time.sleep(wait)

    def start(self) -> None:
        """Serve, in threads of its own."""
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def running_registry(**options: Any) -> Iterator[Registry]:
    """A registry that serves; takes what `Registry` takes."""
    registry = Registry(**options)
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Tests look at `Registry.requests`."""

    @property
    def registry(self) -> Registry:
        return self.server.registry

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - likewise

    def _handle(self) -> None:
        if self.registry.faults.down:
            self._cut()
            return
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        if split.path == "/token":
            self._token(parse_qs(split.query).get("scope", []))
            return
        if not self._admitted(split.path):
            return
        if upload := _UPLOAD.match(split.path):
            self._upload(upload["name"], upload["id"], query)
        elif split.path == "/v2/":
            self._answer(200, b"{}")
        elif match := _PATH.match(split.path):
            getattr(self, f"_{match['kind']}")(match["name"], match["rest"])
        else:
            self._fail(404, "NAME_UNKNOWN")

    # Who may

    def _token(self, scopes: list[str]) -> None:
        body = self._body()
        form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        scopes = scopes or [form.get("scope", "")]
        registry = self.registry
        known = self._is_user() or form.get("refresh_token") == registry.password != ""
        if registry.user is not None and not known:
            self._answer(401, b"{}")
            return
        token = secrets.token_hex(16)
        granted = frozenset(part for scope in scopes for part in scope.split())
        with registry.lock:
            registry.tokens[token] = granted, time.monotonic() + registry.token_seconds
        answer = {"token": token, "expires_in": registry.token_seconds}
        self._answer(200, json.dumps(answer).encode())

    def _is_user(self) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        pair = f"{self.registry.user}:{self.registry.password}".encode()
        return scheme == "Basic" and value == base64.b64encode(pair).decode()

    def _admitted(self, path: str) -> bool:
        registry = self.registry
        match registry.scheme:
            case "none":
                return True
            case "basic":
                if self._is_user():
                    return True
                demand = 'Basic realm="test, with a comma"'
            case _:
                if self._has_token(path):
                    return True
                demand = f'Bearer realm="{registry.url}/token",service="test"'
        self._body()
        self._answer(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', {"WWW-Authenticate": demand})
        return False

    def _has_token(self, path: str) -> bool:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        granted, until = self.registry.tokens.get(token, (frozenset[str](), 0.0))
        if scheme != "Bearer" or time.monotonic() > until:
            return False
        match = _UPLOAD.match(path) or _PATH.match(path)
        if match is None:
            return True
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        actions = [
            scope.rsplit(":", 1)[1].split(",")
            for scope in granted
            if scope.startswith(f"repository:{match['name']}:")
        ]
        return any(action in some for some in actions)

    # Content

    def _blobs(self, name: str, digest: str) -> None:
        faults = self.registry.faults
        with self.registry.lock:
            status = faults.statuses.pop(0) if faults.statuses else None
        if status is not None:
            self._fail(status, "TOOMANYREQUESTS", faults.retry_after)
            return
        data = self.registry.blobs.get(digest)
        if data is None or (name, digest) not in self.registry.linked:
            self._fail(404, "BLOB_UNKNOWN")
            return
        data = faults.tampered.get(digest, data)
        asked = _RANGE.match(self.headers.get("Range", "")) if faults.ranges else None
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        if asked is None:
            self._answer(200, data, headers, content=True)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if start > end:
            self._fail(416, "RANGE_INVALID")
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(206, data[start : end + 1], headers, content=True)

    def _manifests(self, name: str, target: str) -> None:
        registry = self.registry
        if self.command == "PUT":
            body = self._body()
            tag = None if ":" in target else target
            found = registry.add_manifest(name, body, self.headers["Content-Type"], tag)
            if missing := self._missing(name, json.loads(body)):
                del registry.manifests[name, found["digest"]]
                self._fail(404, "MANIFEST_BLOB_UNKNOWN " + missing)
                return
            headers = {"Location": self.path, "Docker-Content-Digest": found["digest"]}
            subject = json.loads(body).get("subject")
            if subject and registry.faults.referrers:
                headers["OCI-Subject"] = subject["digest"]
            self._answer(201, b"", headers)
            return
        digest = registry.tags.get((name, target), target)
        if (name, digest) not in registry.manifests:
            self._fail(404, "MANIFEST_UNKNOWN")
            return
        media_type, data = registry.manifests[name, digest]
        data = registry.faults.tampered.get(digest, data)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        self._answer(200, data, headers, content=True)

    def _missing(self, name: str, document: dict[str, Any]) -> str:
        """A blob that a manifest names and the repository has not."""
        for child in [document.get("config"), *document.get("layers", [])]:
            if child and (name, child["digest"]) not in self.registry.linked:
                return str(child["digest"])
        for child in document.get("manifests", []):
            if (name, child["digest"]) not in self.registry.manifests:
                return str(child["digest"])
        return ""

    def _tags(self, name: str, _: str) -> None:
        tags = sorted(tag for repository, tag in self.registry.tags if repository == name)
        self._answer(200, json.dumps({"name": name, "tags": tags}).encode())

    def _referrers(self, name: str, digest: str) -> None:
        if not self.registry.faults.referrers:
            self._fail(404, "UNSUPPORTED")
            return
        found = []
        for (repository, own), (media_type, data) in self.registry.manifests.items():
            document = json.loads(data)
            if repository == name and (document.get("subject") or {}).get("digest") == digest:
                entry = {"mediaType": media_type, "digest": own, "size": len(data)}
                found.append({**entry, "artifactType": document.get("artifactType", "")})
        body = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": found}
        self._answer(200, json.dumps(body).encode(), {"Content-Type": _OCI_INDEX})

    def _upload(self, name: str, upload: str, query: dict[str, str]) -> None:
        registry = self.registry
        body = self._body()
        if self.command == "POST":
            digest = query.get("mount", "")
            if digest and (query.get("from", ""), digest) in registry.linked:
                registry.linked.add((name, digest))
                self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}"})
                return
            upload = secrets.token_hex(8)
            registry.uploads[upload] = bytearray()
        if upload not in registry.uploads:
            self._fail(404, "BLOB_UPLOAD_UNKNOWN")
            return
        registry.uploads[upload] += body
        if self.command == "PUT":
            data = bytes(registry.uploads.pop(upload))
            found = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if found != query.get("digest"):
                self._fail(400, "DIGEST_INVALID")
                return
            registry.add_blob(name, data)
            self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{found}"})
            return
        place = f"/v2/{name}/blobs/uploads/{upload}?state=kept"
        size = len(registry.uploads[upload])
        self._answer(202, b"", {"Location": place, "Range": f"0-{max(size - 1, 0)}"})

    # Bytes

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = bytearray()
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(data)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _fail(self, status: int, code: str, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        body = {"errors": [{"code": code, "message": "as the test asked"}]}
        self._answer(status, json.dumps(body).encode(), headers)

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        content: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        sent = 0
        try:
            if self.command != "HEAD":
                sent = self._send(data, content=content)
        finally:
            with self.registry.lock:
                self.registry.requests.append(
                    Asked(self.command, self.path, self.headers.get("Range", ""), sent)
                )

    def _send(self, data: bytes, *, content: bool) -> int:
        faults = self.registry.faults
        cut = None
        if content and "/blobs/" in self.path:
            with self.registry.lock:
                if faults.cuts > 0 and len(data) > faults.cut_after:
                    faults.cuts -= 1
                    cut = faults.cut_after
        view = memoryview(data)[:cut]
        sent = 0
        for start in range(0, len(view), _BLOCK):
            block = view[start : start + _BLOCK]
            if content:
                self.registry.take(len(block))
            self.wfile.write(block)
            sent += len(block)
        if cut is not None:
            self._cut()
        return sent

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
