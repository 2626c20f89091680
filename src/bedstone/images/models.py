"""The documents of an image (OCI image-spec 1.1; Docker image manifest v2, schema 2). Pure.

Rules:
- A document is parsed from the bytes that its digest names, and those bytes are what is stored and
  passed on; a model is never written in their place.
- Unknown fields are allowed, as the specification demands ("extensibility").
- What a document says about sizes is bounded here, before anything is fetched by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from bedstone.errors import InvalidError
from bedstone.images.digests import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

ENCRYPTED = "dev.bedstone.lazy.encrypted"
"""Annotation of an image all of which is in a lazy image beside it, sealed."""

DOCUMENT_BYTES = 4 << 20
"""Bytes of the largest manifest or index (distribution-spec: registries should accept 4 MiB)."""
CONFIG_BYTES = 8 << 20
"""Bytes of the largest image config."""
LAYERS = 512
"""The most layers of an image; overlay file systems take fewer."""
ENTRIES = 1024
"""The most entries of an index."""

_COMPRESSIONS = {
    OCI_LAYER: "",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    DOCKER_LAYER: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}

_CAMEL = ConfigDict(
    frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, strict=False
)
# The fields of image configs are written in capitals ("Env") or in snake case ("rootfs").
_PASCAL = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

Annotations = Annotated[Mapping[str, str], BeforeValidator(lambda value: value or {})]
Strings = Annotated[
    # Docker took a string for a list of one, and images of then are still about.
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) and value else value or ()),
]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
Set = Annotated[Mapping[str, Any], BeforeValidator(lambda value: value or {})]


class Platform(BaseModel):
    """What an image runs on, in Go's words: `linux`, `amd64`, and a variant such as `v8`."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = Field(default="", alias="os.version")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(BaseModel):
    """Names content: its type, digest and size in bytes."""

    model_config = _CAMEL

    media_type: str = Field(max_length=255)
    digest: Digest
    size: int = Field(ge=0, lt=1 << 63)
    urls: Strings = ()
    annotations: Annotations = Field(default_factory=dict)
    artifact_type: str = ""
    platform: Platform | None = None

    @property
    def compression(self) -> str | None:
        """For a layer: `gzip`, `zstd` or `""` for none; None for what is no layer that we know."""
        return _COMPRESSIONS.get(self.media_type)


class Manifest(BaseModel):
    """An image for one platform, or an artifact: a config and layers, the lowest first."""

    model_config = _CAMEL

    schema_version: int = Field(default=2, ge=2, le=2)
    media_type: str = OCI_MANIFEST
    artifact_type: str = ""
    config: Descriptor
    layers: Annotated[
        tuple[Descriptor, ...], BeforeValidator(lambda value: () if value is None else value)
    ] = Field(max_length=LAYERS)
    subject: Descriptor | None = None
    annotations: Annotations = Field(default_factory=dict)

    def children(self) -> Iterator[Descriptor]:
        """What it needs."""
        yield self.config
        yield from self.layers


class Index(BaseModel):
    """Images of one name for several platforms."""

    model_config = _CAMEL

    schema_version: int = Field(default=2, ge=2, le=2)
    media_type: str = OCI_INDEX
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...] = Field(max_length=ENTRIES)
    subject: Descriptor | None = None
    annotations: Annotations = Field(default_factory=dict)

    def children(self) -> Iterator[Descriptor]:
        """What it lists."""
        yield from self.manifests


class RunConfig(BaseModel):
    """How an image's program is run (image-spec, config.md, "config")."""

    model_config = _PASCAL

    user: Text = Field(default="", alias="User")
    env: Strings = Field(default=(), alias="Env")
    entrypoint: Strings = Field(default=(), alias="Entrypoint")
    cmd: Strings = Field(default=(), alias="Cmd")
    working_dir: Text = Field(default="", alias="WorkingDir")
    exposed_ports: Set = Field(default_factory=dict, alias="ExposedPorts")
    volumes: Set = Field(default_factory=dict, alias="Volumes")
    labels: Annotations = Field(default_factory=dict, alias="Labels")
    stop_signal: Text = Field(default="", alias="StopSignal")


class RootFs(BaseModel):
    """The digests of an image's layers, unpacked: of the tar archives."""

    model_config = _PASCAL

    type: str = "layers"
    diff_ids: Annotated[
        tuple[Digest, ...], BeforeValidator(lambda value: () if value is None else value)
    ] = Field(default=(), max_length=LAYERS)


class ImageConfig(BaseModel):
    """An image's config: platform, how it is run, what its layers are."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    created: str | None = None
    author: str | None = None
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    config: Annotated[RunConfig, BeforeValidator(lambda value: {} if value is None else value)] = (
        RunConfig()
    )
    rootfs: RootFs

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


Document = TypeVar("Document", bound=BaseModel)


def parse(kind: type[Document], data: bytes, what: str) -> Document:
    """A document from its bytes.

    Args:
        kind: the model.
        data: the bytes.
        what: for errors, which document it is.

    Raises:
        InvalidError: it is no such document; the message names the first field that is wrong.
    """
    limit = CONFIG_BYTES if issubclass(kind, ImageConfig) else DOCUMENT_BYTES
    if len(data) > limit:
        raise InvalidError(f"{what} has {len(data)} bytes, expected at most {limit}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise InvalidError(f"{what}: {place}: {first['msg'].lower()}") from error


def parse_manifest(data: bytes, media_type: str, what: str) -> Manifest | Index:
    """A manifest or an index, by its media type; raises as `parse` does."""
    kind: type[Manifest | Index] = Index if media_type in INDEXES else Manifest
    if media_type not in MANIFESTS | INDEXES:
        raise InvalidError(
            f"{what} has type {media_type!r}, expected an image manifest or index",
            hint="images of Docker's schema 1 are not supported; push the image again"
            if "schema" not in media_type and "prettyjws" in media_type
            else None,
        )
    document = parse(kind, data, what)
    # image-spec, manifest.md: a document that can be read as both would mean two images.
    declared = document.media_type
    if declared != media_type and "media_type" in document.model_fields_set:
        raise InvalidError(f"{what} says it is {declared!r}, but was given as {media_type!r}")
    if (document.model_extra or {}).keys() & {"manifests", "layers", "config"}:
        raise InvalidError(f"{what} is a manifest and an index at once")
    return document


def dump(document: BaseModel) -> dict[str, Any]:
    """A document as JSON with the specification's names, without what is empty."""
    found = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    return _prune(found)


def _prune(value: dict[str, Any]) -> dict[str, Any]:
    pruned: dict[str, Any] = {}
    for key, item in value.items():
        kept = item
        if isinstance(item, dict):
            kept = _prune(item)
        elif isinstance(item, list):
            kept = [_prune(part) if isinstance(part, dict) else part for part in item]
        if kept not in ("", {}, []) or key in {"layers", "manifests"}:
            pruned[key] = kept
    return pruned
