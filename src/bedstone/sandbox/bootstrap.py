"""The files through which a gRPC client joins the mesh without a proxy (`xds:///NAME`).

A bootstrap (gRFC A27, A29, A65) names the server's ADS and the certificate provider; the identity's
three PEM files lie beside it. They are replaced one by one by rename, and gRPC's file watcher takes
a key and a certificate only once they match, so a renewal needs no other care.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

BOOTSTRAP = "grpc-xds.json"
_KEY, _CHAIN, _BUNDLE = "key.pem", "chain.pem", "bundle.pem"


def write_identity(folder: Path, identity: tuple[str, str, str], owner: int | None) -> None:
    """Replace the PEM files of key, chain and bundle, mode 0600, owned by `owner`."""
    for name, text in zip((_KEY, _CHAIN, _BUNDLE), identity, strict=True):
        _write(folder / name, text, owner)


def write_bootstrap(
    folder: Path, node: str, xds: str, owner: int | None, *, seen: Path | None = None
) -> Path:
    """Write the bootstrap file of the client `node`, and answer with its path.

    `seen` is where the client sees the folder, if elsewhere.
    """
    place = folder if seen is None else seen
    files = {
        "certificate_file": str(place / _CHAIN),
        "private_key_file": str(place / _KEY),
        "ca_certificate_file": str(place / _BUNDLE),
    }
    value = {
        "xds_servers": [
            {
                "server_uri": xds,
                "channel_creds": [{"type": "tls", "config": files}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": node},
        "certificate_providers": {
            "default": {
                "plugin_name": "file_watcher",
                "config": files | {"refresh_interval": "10s"},
            }
        },
    }
    path = folder / BOOTSTRAP
    _write(path, json.dumps(value, indent=1), owner)
    return path


def make_folder(folder: Path, owner: int | None) -> None:
    """A folder that only `owner` (and root) may enter."""
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if owner is not None:
        folder.parent.chmod(0o711)  # whatever the umask: the owner has to pass
        os.chown(folder, owner, owner, follow_symlinks=False)


def _write(path: Path, text: str, owner: int | None) -> None:
    draft = path.with_name(f".{path.name}.new")
    # The folder is the instance's, and we may be root: what it put there must not be written to.
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        file.write(text)
    draft.replace(path)
