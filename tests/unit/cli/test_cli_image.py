"""`bedstone image`, against a real registry on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bedstone.errors import DeniedError, VerificationError
from bedstone.images.lazy.images import lazy_root
from bedstone.images.opening import Opened, open_image
from bedstone.images.reference import Reference
from bedstone.images.roots import prepare_root
from bedstone.images.store import ContentStore
from bedstone.testing.registry import Registry, running_registry

Command = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEDSTONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("BEDSTONE_REGISTRY_MIRRORS", raising=False)
    monkeypatch.setattr("bedstone.images.platforms.host", _amd)
    return tmp_path / "home"


def _amd() -> Any:
    from bedstone.images.models import Platform

    return Platform(os="linux", architecture="amd64")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as running:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            info = tarfile.TarInfo("etc/motd")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
        running.add_image(
            "app", [out.getvalue()], "1", Cmd=["sh", "-c"], Env=["A=b"], Labels={"x": "\x1b[31m"}
        )
        yield running


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """`key`, `key.pub` and `other.pub`."""
    for name in ("key", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / name).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (tmp_path / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return tmp_path


def test_an_image_is_pulled_listed_inspected_and_removed(
    home: Path, registry: Registry, command: Command
) -> None:
    name = f"{registry.host}/app:1"
    digest = registry.tags["app", "1"]
    assert command("image", "ls").err.startswith("no image is here")
    ended = command("image", "pull", name)
    assert (ended.status, ended.out) == (0, f"{name}  {digest}\n")
    assert name in command("image", "ls").out
    (listed,) = json.loads(command("image", "ls", "-o", "json").out)
    assert (listed["name"], listed["digest"]) == (name, digest)
    assert listed["bytes"] > 10_000
    shown = command("image", "inspect", name).out
    assert "sh -c" in shown
    assert "\x1b" not in shown
    found = json.loads(command("image", "inspect", name, "-o", "json").out)
    assert found["config"]["config"]["Env"] == ["A=b"]
    assert found["digest"] == digest
    assert command("image", "gc", "-o", "json").out == '{\n  "removed": [],\n  "bytes": 0\n}\n'
    assert command("image", "rm", name).status == 0
    assert command("image", "rm", name).status == 3
    assert len(json.loads(command("image", "gc", "-o", "json").out)["removed"]) == 3
    ended = command("image", "inspect", name)
    assert ended.status == 3
    assert "bedstone image pull" in ended.err


def test_mistakes_are_told_and_exit_by_their_kind(
    home: Path, registry: Registry, command: Command, tmp_path: Path
) -> None:
    for status, words in {
        2: ["pull", "Not a name"],
        3: ["pull", f"{registry.host}/app:none"],
    }.items():
        ended = command("image", *words)
        assert ended.status == status, ended.err
        assert ended.err.startswith("error: ")
        assert "Traceback" not in ended.err
    assert command("image", "pull", "app", "--platform", "a/b/c/d").status == 2
    assert command("image", "pull", "app", "--mirror", "nonsense").status == 2
    assert command("image", "pull", f"oci:{tmp_path}/none").status == 3
    assert command("image", "pull", f"oci:{tmp_path}", "--all-platforms").status == 2


def test_damage_is_found_and_mended(home: Path, registry: Registry, command: Command) -> None:
    name = f"{registry.host}/app:1"
    command("image", "pull", name)
    assert command("image", "verify", name).status == 0
    store = ContentStore(home / "images")
    largest = max(store.blobs(), key=lambda blob: blob[1])[0]
    store.path(largest).chmod(0o644)
    store.path(largest).write_bytes(b"damage")
    ended = command("image", "verify", name)
    assert ended.status == 6
    assert f"damaged, and removed: {largest}" in ended.err
    report = json.loads(command("image", "verify", name, "-o", "json").out)
    assert (report["damaged"], report["missing"]) == ([], [largest])
    command("image", "pull", name)
    assert command("image", "verify", name).status == 0


def test_only_what_is_signed_is_pulled_with_a_key(
    home: Path, registry: Registry, command: Command, keys: Path
) -> None:
    name = f"{registry.host}/app:1"
    ended = command("image", "pull", name, "--key", str(keys / "key.pub"))
    assert ended.status == 6
    assert "has no signature" in ended.err
    assert registry.counted("GET", "/blobs/") == 0
    assert command("image", "ls", "-o", "json").out == "[]\n"
    command("image", "pull", name)
    ended = command("image", "push", name, "--sign-key", str(keys / "key"))
    assert ended.status == 0, ended.err
    ended = command("image", "pull", name, "--key", str(keys / "other.pub"))
    assert ended.status == 6
    assert "none of the keys" in ended.err
    both = ["--key", str(keys / "other.pub"), "--key", str(keys / "key.pub")]
    assert command("image", "pull", name, *both).status == 0
    ended = command("image", "verify", name, *both)
    assert ended.status == 0
    assert f"signed as {registry.host}/app by {keys / 'key.pub'}" in ended.out
    assert command("image", "verify", name, "--key", str(keys / "other.pub")).status == 6
    assert command("image", "verify", name, "--key", str(keys / "key")).status == 2


def test_the_policy_beside_the_store_is_enforced(
    home: Path, registry: Registry, command: Command, keys: Path, tmp_path: Path
) -> None:
    name = f"{registry.host}/app:1"
    command("image", "pull", name)
    command("image", "push", name, "--sign-key", str(keys / "key"))
    command("image", "rm", name)
    command("image", "gc")
    policy = home / "image-policy.yaml"

    def rule(key: str) -> None:
        policy.write_text(f"images: [{{match: '*/app', signed_by: [{keys / key}]}}]")

    rule("other.pub")
    ended = command("image", "pull", name)
    assert ended.status == 6
    assert str(policy) in ended.err
    assert command("image", "ls", "-o", "json").out == "[]\n"
    rule("key.pub")
    assert command("image", "pull", name).status == 0
    store = ContentStore(home / "images")
    reference = Reference.parse(name)
    image = open_image(store, reference, _amd())
    path, _ = prepare_root(store, image)
    assert (path / "etc/motd").read_bytes() == b"hello"
    # By what was kept: the registry is not asked again, and another key would not do.
    rule("other.pub")
    with pytest.raises(VerificationError):
        prepare_root(store, image)
    policy.write_text("images: []")
    with pytest.raises(DeniedError):
        asyncio.run(_lazily(store, image))
    assert command("image", "pull", name).status == 5


_SBOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "components": [
        {
            "type": "library",
            "name": "zlib",
            "version": "1.3",
            "licenses": [{"license": {"id": "Zlib"}}],
            "components": [{"type": "file", "name": "crc\x1b[31m", "group": "in"}],
        },
        {"type": "library", "name": "abc", "licenses": [{"expression": "MIT OR X11"}]},
    ],
}


@pytest.mark.parametrize("how", ["referrers", "tag of referrers", "tag of cosign"])
def test_what_an_image_is_made_of_is_shown_and_kept(
    home: Path, registry: Registry, command: Command, how: str
) -> None:
    name = f"{registry.host}/app:1"
    digest = registry.tags["app", "1"]
    command("image", "pull", name)
    ended = command("image", "sbom", name)
    assert ended.status == 3
    assert "CycloneDX" in ended.err
    kind = "application/vnd.cyclonedx+json"
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "artifactType": kind,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            **registry.add_blob("app", b"{}"),
        },
        "layers": [{"mediaType": kind, **registry.add_blob("app", json.dumps(_SBOM).encode())}],
    }
    plain = f"sha256-{digest[7:]}"
    match how:
        case "referrers":
            subject = {"mediaType": manifest_type, "digest": digest, "size": 1}
            registry.add_manifest("app", {**manifest, "subject": subject}, manifest_type)
        case "tag of referrers":
            registry.faults.referrers = False
            found = registry.add_manifest("app", manifest, manifest_type)
            index = {"schemaVersion": 2, "manifests": [{**found, "artifactType": kind}]}
            registry.add_manifest("app", index, "application/vnd.oci.image.index.v1+json", plain)
        case _:
            registry.add_manifest("app", manifest, manifest_type, f"{plain}.sbom")
    ended = command("image", "sbom", name)
    assert ended.status == 0, ended.err
    assert [line.split() for line in ended.out.splitlines()] == [
        ["COMPONENT", "VERSION", "KIND", "LICENSES"],
        ["abc", "library", "MIT", "OR", "X11"],
        ["in/crc[31m", "file"],
        ["zlib", "1.3", "library", "Zlib"],
    ]
    registry.faults.down = True
    assert json.loads(command("image", "sbom", name, "-o", "json").out) == _SBOM


async def _lazily(store: ContentStore, image: Opened) -> None:
    async with lazy_root(store, image, ways=("erofs",)):
        pass


def test_images_go_to_registries_and_files_and_come_back(
    home: Path, registry: Registry, command: Command, tmp_path: Path
) -> None:
    name = f"{registry.host}/app:1"
    command("image", "pull", name)
    target = f"{registry.host}/other/app:2"
    assert command("image", "push", name, target).status == 0
    assert registry.tags["other/app", "2"] == registry.tags["app", "1"]
    for place in (f"oci:{tmp_path}/layout", f"docker-archive:{tmp_path}/app.tar"):
        ended = command("image", "push", name, place)
        assert ended.status == 0, ended.err
        command("image", "rm", name)
        command("image", "gc")
        ended = command("image", "pull", place, "-o", "json")
        assert json.loads(ended.out) == [{"name": name, "digest": registry.tags["app", "1"]}]
    ended = command("image", "push", name, f"oci:{tmp_path}/x", "--sign-key", "key")
    assert ended.status == 2


def test_a_lazy_image_is_made_signed_and_sent_with_its_image(
    home: Path, registry: Registry, command: Command, keys: Path
) -> None:
    name = f"{registry.host}/app:1"
    command("image", "pull", name)
    ended = command("image", "convert", name, f"{registry.host}/app:lazy", "-o", "json")
    assert ended.status == 0, ended.err
    made = json.loads(ended.out)
    assert made["form"] == "converted"
    assert made["content"] > 0
    target = f"{registry.host}/app:lazy"
    ended = command("image", "push", target, "--sign-key", str(keys / "key"))
    assert ended.status == 0, ended.err
    assert ("app", made["lazy"]) in registry.manifests
    assert ("app", f"sha256-{made['lazy'][7:]}.sig") in registry.tags
    (home / "image-key").write_text("0" * 64)
    (home / "image-key").chmod(0o644)
    ended = command("image", "convert", name, "secret:1", "--encrypt", f"file:{home}/image-key")
    assert ended.status == 2
    assert "others may read" in ended.err
    (home / "image-key").chmod(0o600)
    ended = command("image", "convert", name, "secret:1", "--encrypt", f"file:{home}/image-key")
    assert ended.status == 0, ended.err
    assert "encrypted" in ended.out
    ended = command("image", "convert", name, "--encrypt", f"file:{home}/image-key")
    assert ended.status == 2
    command("image", "rm", name, target, "secret:1")
    command("image", "gc")
    registry.requests.clear()
    ended = command("image", "pull", target, "--lazy")
    assert ended.status == 0, ended.err
    assert made["digest"] in ended.out
    layers = json.loads(registry.manifests["app", made["digest"]][1])["layers"]
    assert registry.counted("GET", layers[0]["digest"]) == 0
