"""The documents of images, and the choice of a platform."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bedstone.errors import InvalidError, NotFoundError
from bedstone.images import platforms
from bedstone.images.models import (
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCUMENT_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    dump,
    parse,
    parse_manifest,
)

_DIGEST = "sha256:" + "a1" * 32


def descriptor(media_type: str = OCI_CONFIG, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _DIGEST, "size": 3, **more}


def manifest(**more: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "config": descriptor(), "layers": [descriptor(OCI_LAYER)], **more}
    ).encode()


def test_a_manifest_reads_and_unknown_fields_are_allowed() -> None:
    found = parse_manifest(manifest(new="field"), OCI_MANIFEST, "m")
    assert isinstance(found, Manifest)
    assert [child.media_type for child in found.children()] == [OCI_CONFIG, OCI_LAYER]
    assert found.layers[0].compression == ""
    assert dump(found)["layers"] == [descriptor(OCI_LAYER)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "json"),
        (b"[]", "m: document"),
        (manifest(schemaVersion=1), "schemaVersion"),
        (manifest(layers=[descriptor(digest="sha256:../../x")]), "layers.0.digest"),
        (manifest(layers=[descriptor(size=-1)]), "layers.0.size"),
        (manifest(layers=[descriptor(size=1 << 70)]), "layers.0.size"),
        (manifest(layers=[descriptor()] * 600), "layers"),
        (manifest(mediaType=DOCKER_MANIFEST), "but was given as"),
        (manifest(manifests=[]), "at once"),
        (b" " * (DOCUMENT_BYTES + 1), "bytes"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_field(data: bytes, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        parse_manifest(data, OCI_MANIFEST, "m")


def test_schema_1_is_refused() -> None:
    with pytest.raises(InvalidError, match="expected an image manifest"):
        parse_manifest(b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "m")


def test_a_config_reads_with_nulls_as_docker_writes_them() -> None:
    config = parse(
        ImageConfig,
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": None, "Labels": None},
                "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
            }
        ).encode(),
        "c",
    )
    assert (config.config.env, config.config.cmd, config.config.entrypoint) == (
        ("A=b",),
        ("sh",),
        (),
    )
    assert str(config.platform) == "linux/amd64"


def test_what_writers_leave_out_or_write_otherwise_is_understood() -> None:
    config = parse(ImageConfig, b'{"config":null,"rootfs":{"type":"layers"}}', "c")
    assert (config.config.cmd, config.rootfs.diff_ids, config.os) == ((), (), "linux")
    text = b'{"config":{"Entrypoint":"sh","User":null,"Cmd":""},"rootfs":{"diff_ids":null}}'
    config = parse(ImageConfig, text, "c")
    assert (config.config.entrypoint, config.config.user, config.config.cmd) == (("sh",), "", ())
    empty = parse_manifest(manifest(layers=None), OCI_MANIFEST, "m")
    assert isinstance(empty, Manifest)
    assert empty.layers == ()


def test_layers_say_their_compression() -> None:
    def of(media_type: str) -> str | None:
        return Descriptor.model_validate(descriptor(media_type)).compression

    assert of(f"{OCI_LAYER}+zstd") == "zstd"
    assert of(DOCKER_LAYER) == "gzip"
    assert of("application/x") is None


def index(*names: str) -> Index:
    entries = []
    for number, name in enumerate(names):
        words = name.split("/")
        platform = {"os": words[0], "architecture": words[1]}
        if len(words) > 2:
            platform["variant"] = words[2]
        entries.append(
            descriptor(OCI_MANIFEST, platform=platform, annotations={"number": str(number)})
        )
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    found = parse_manifest(data, OCI_INDEX, "i")
    assert isinstance(found, Index)
    return found


@pytest.mark.parametrize(
    ("wanted", "offered", "place"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v6"], 1),
        ("amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", [], None),
    ],
)
def test_the_image_that_fits_best_is_chosen(
    wanted: str, offered: list[str], place: int | None
) -> None:
    platform = platforms.parse(wanted)
    if place is None:
        with pytest.raises(NotFoundError, match="only for"):
            platforms.choose(index(*offered), platform, "i")
    else:
        found = platforms.choose(index(*offered), platform, "i")
        assert found.annotations["number"] == str(place)


def test_platforms_read_as_people_write_them() -> None:
    assert platforms.parse("linux/aarch64") == Platform(os="linux", architecture="arm64")
    assert str(platforms.parse("linux/arm/v7")) == "linux/arm/v7"
    assert platforms.host().os == "linux"
    for text in ("", "a/b/c/d", "linux/"):
        with pytest.raises(InvalidError):
            platforms.parse(text)


def test_an_index_of_docker_reads() -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []}).encode()
    assert isinstance(parse_manifest(data, DOCKER_LIST, "i"), Index)
