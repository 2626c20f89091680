"""The server's own certificate, made and renewed in this process.

Its key is written to disk only where the API listens on TCP, whose TLS reads files.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from bedstone.trust.authority import LEAF_LIFETIME, Authority, Issued
from bedstone.trust.spiffe import server_id
from bedstone.trust.svid import certificate_request, new_key, write_private

_FILE_LIFETIME = dt.timedelta(days=365)
HOSTS = ("localhost", "127.0.0.1", "::1")


class ServerCredentials:
    """Issues the server's certificate to itself, anew at half its life."""

    def __init__(self, authority: Authority, hosts: Sequence[str] = ()) -> None:
        self._authority = authority
        self._hosts = tuple(dict.fromkeys((*HOSTS, *hosts)))
        self._until = 0.0
        self._pair = ("", "")

    def pair(self) -> tuple[str, str]:
        """Key and chain, PEM; the same until half of their life has passed."""
        if time.time() > self._until - LEAF_LIFETIME.total_seconds() / 2:
            key, issued = self._issue(LEAF_LIFETIME)
            self._pair, self._until = (key, issued.chain), issued.expires
        return self._pair

    def grpc(self) -> grpc.ServerCredentials:
        """Mutual TLS for gRPC; a handshake after renewal uses the new certificate."""

        def fetch() -> grpc.ServerCertificateConfiguration:
            key, chain = self.pair()
            return grpc.ssl_server_certificate_configuration(
                [(key.encode(), chain.encode())], self._authority.bundle.encode()
            )

        return grpc.dynamic_ssl_server_credentials(
            fetch(), fetch, require_client_authentication=True
        )

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write key and chain for a TLS listener that reads files; returns their paths."""
        key, issued = self._issue(_FILE_LIFETIME)
        key_file, chain_file = directory / "api.key", directory / "api.pem"
        write_private(key_file, key)
        write_private(chain_file, issued.chain)
        return key_file, chain_file

    def _issue(self, lifetime: dt.timedelta) -> tuple[str, Issued]:
        key = new_key()
        identity = server_id(self._authority.domain)
        request = certificate_request(key, identity)
        return key, self._authority.sign(request, identity, hosts=self._hosts, lifetime=lifetime)
