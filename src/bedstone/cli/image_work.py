"""What `bedstone image` does, with what it shows meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bedstone.cli.terminal import Terminal, clean, columns
from bedstone.cli.top_view import size
from bedstone.errors import Error, InvalidError, NotFoundError, VerificationError
from bedstone.images import platforms, sbom, signatures
from bedstone.images.bundles import load
from bedstone.images.collection import closure
from bedstone.images.endpoints import from_environment
from bedstone.images.models import ENCRYPTED, Descriptor, Manifest, dump, parse
from bedstone.images.opening import open_image, resolve
from bedstone.images.pulling import Advanced, Arrived, Event, Resolved, pull
from bedstone.images.pushing import Sending, Sent, push
from bedstone.images.reference import Reference
from bedstone.images.referrers import artifacts
from bedstone.images.registry import RegistryClient
from bedstone.images.saving import save
from bedstone.images.store import ContentStore

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Keys = Sequence[tuple[str, signatures.PublicKey]]
"""Public keys, each with the file that it is from."""


async def pull_image(
    store: ContentStore,
    name: str,
    platform: str | None,
    mirrors: Sequence[str],
    keys: Keys,
    terminal: Terminal,
    *,
    every_platform: bool,
    lazy: bool = False,
) -> list[tuple[str, str]]:
    """Pull; the name and the digest that it means."""
    reference = Reference.parse(name)
    wanted = platforms.parse(platform) if platform else None
    async with RegistryClient(from_environment(mirrors)) as client:

        async def admit(root: Descriptor) -> None:
            if keys:
                await _signed(client, reference, root.digest, keys)

        async def leave(descriptor: Descriptor, manifest: Manifest) -> bool:
            if not lazy and ENCRYPTED not in manifest.annotations:
                return False
            from bedstone.images.lazy.remote import Ignored, adopt

            def ignored(one: Ignored) -> None:
                terminal.complain(f"not used: {one.type} {one.digest[:19]}: {one.reason}")

            return await adopt(store, client, reference, descriptor, manifest, ignored)

        with _Bars(terminal).shown() as bars:
            found = await pull(
                store,
                client,
                reference,
                platform=wanted,
                every_platform=every_platform,
                admit=admit,
                leave=leave,
                tell=bars.pulled,
            )
    return [(reference.familiar, found.root.digest)]


def load_bundle(
    store: ContentStore, path: Path, tag: str | None, terminal: Terminal
) -> list[tuple[str, str]]:
    """Load the images of a file; their names and digests."""
    with terminal.waiting(f"reading {path}"):
        named = load(store, path, tag=tag)
    return [(one.reference.familiar, one.descriptor.digest) for one in named]


async def push_image(
    store: ContentStore,
    name: str,
    target: str | None,
    sign_key: Path | None,
    terminal: Terminal,
) -> str:
    """Push, and sign if there is a key; the digest."""
    source = Reference.parse(name)
    destination = Reference.parse(target) if target else source
    key = signatures.read_private_key(sign_key) if sign_key else None
    async with RegistryClient() as client:
        with _Bars(terminal).shown() as bars:
            root = await push(store, client, source, destination, tell=bars.pushed)
        if key is not None:
            for digest in (root.digest, *_beside(store, root.digest)):
                signed = signatures.sign(destination, digest, key)
                place = await signatures.publish(client, destination, digest, signed)
                terminal.say(f"signed: {place}")
    return root.digest


def _beside(store: ContentStore, root: str) -> list[str]:
    """The lazy images and the lists of chunks that were sent with an image."""
    found = sorted(closure(store, [root]))
    return [one.descriptor.digest for digest in found for one in artifacts(store, digest)]


def convert_image(
    store: ContentStore,
    name: str,
    destination: str | None,
    platform: str | None,
    form: Literal["converted", "index"],
    encrypt: str | None,
) -> dict[str, Any]:
    """Make a lazy image; what it is and weighs."""
    from bedstone.images.lazy import artifact
    from bedstone.images.lazy.sealing import open_key

    if encrypt and (destination is None or form != "converted"):
        raise InvalidError(
            "an encrypted image has a name of its own, and its content is written anew",
            hint="give a DESTINATION, and no --form",
        )
    image = open_image(
        store, Reference.parse(name), platforms.parse(platform) if platform else None
    )
    target = Reference.parse(destination) if destination else image.reference
    with store.lease(f"convert-{image.root.digest}", seconds=86400) as lease:
        lease.add(image.root.digest)
        if encrypt:
            root = artifact.build_encrypted(store, image, target, open_key(encrypt)).digest
        else:
            artifact.build(store, image, form)
            root = image.descriptor.digest
            if destination:
                store.name(target, image.root)
        made = parse(
            Manifest, store.read(store.attached(root)[artifact.KIND].digest), "the lazy image"
        )
    content = [one.size for one in made.layers if one.media_type == artifact.CHUNKS]
    return {
        "name": target.familiar,
        "digest": root,
        "lazy": store.attached(root)[artifact.KIND].digest,
        "form": "encrypted" if encrypt else form,
        "content": sum(content),
        "bytes": sum(one.size for one in made.layers) - sum(content),
    }


def save_bundle(store: ContentStore, name: str, path: Path, tag: str | None) -> str:
    """Write an image to a file; its digest."""
    reference = Reference.parse(name)
    save(store, reference, path, tag=tag)
    return resolve(store, reference).digest


def inspection(store: ContentStore, name: str, platform: str | None) -> dict[str, Any]:
    """All that is known of an image, for programs."""
    image = open_image(
        store, Reference.parse(name), platforms.parse(platform) if platform else None
    )
    return {
        "name": image.reference.familiar,
        "digest": image.root.digest,
        "manifest": {"digest": image.descriptor.digest, **dump(image.manifest)},
        "config": dump(image.config),
        "attached": {
            kind: dump(one)
            for digest in dict.fromkeys((image.root.digest, image.descriptor.digest))
            for kind, one in store.attached(digest).items()
        },
    }


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """The same, for people."""
    config = found["config"]
    run = config.get("config", {})
    platform = "/".join(filter(None, (config.get("os"), config.get("architecture"))))
    facts = [
        ("name", found["name"]),
        ("digest", found["digest"]),
        ("platform", platform),
        ("created", config.get("created", "")),
        ("entrypoint", " ".join(run.get("Entrypoint", []))),
        ("command", " ".join(run.get("Cmd", []))),
        ("user", run.get("User", "")),
        ("directory", run.get("WorkingDir", "")),
        ("ports", " ".join(run.get("ExposedPorts", {}))),
        ("volumes", " ".join(run.get("Volumes", {}))),
        *(("environment", one) for one in run.get("Env", [])),
        *(("label", f"{key}={value}") for key, value in run.get("Labels", {}).items()),
        *(
            ("layer", f"{layer['digest']}  {size(layer['size'])}")
            for layer in found["manifest"]["layers"]
        ),
        *(("attached", f"{kind}  {one['digest']}") for kind, one in found["attached"].items()),
    ]
    return columns((key, clean(str(value))) for key, value in facts if value)


def check_content(store: ContentStore, name: str) -> dict[str, Any]:
    """Read all content of an image; what is damaged is removed. For programs."""
    reference = Reference.parse(name)
    root = resolve(store, reference)
    damaged, good = [], 0
    for digest in sorted(closure(store, [root.digest])):
        try:
            store.verify(digest)
            good += 1
        except NotFoundError:
            continue
        except VerificationError:
            store.delete(digest)
            damaged.append(digest)
    return {
        "name": reference.familiar,
        "digest": root.digest,
        "blobs": good,
        "damaged": damaged,
        "missing": _missing(store, reference),
    }


def _missing(store: ContentStore, reference: Reference) -> list[str]:
    """Content of this machine's platform that is not here."""
    try:
        image = open_image(store, reference)
    except Error:
        root = resolve(store, reference)
        return [] if store.has(root.digest) else [root.digest]
    return [one.digest for one in image.manifest.children() if not store.has(one.digest)]


async def bill_of_materials(store: ContentStore, name: str) -> bytes:
    """An image's CycloneDX document, as it was kept, else by its registry, and kept then."""
    reference = Reference.parse(name)
    root = resolve(store, reference)
    found = sbom.kept(store, root.digest)
    if found is None:
        async with RegistryClient(from_environment()) as client:
            found = await sbom.fetch(client, reference, root.digest)
        sbom.components(found)
        sbom.keep(store, root.digest, found)
    return found


async def check_signature(store: ContentStore, name: str, keys: Keys) -> dict[str, Any]:
    """Who has signed an image, by its registry's signatures. Raises VerificationError."""
    reference = Reference.parse(name)
    root = resolve(store, reference)
    async with RegistryClient(from_environment()) as client:
        found = await _signed(client, reference, root.digest, keys)
    return {
        "identity": found.identity,
        "key": keys[found.key][0],
        "optional": dict(found.optional),
    }


async def _signed(
    client: RegistryClient, reference: Reference, digest: str, keys: Keys
) -> signatures.Verified:
    signed = await signatures.fetch(client, reference, digest)
    return signatures.verify(digest, signed, [key for _, key in keys])


class _Bars:
    """Progress for people: a bar for all that is transferred, with rate and remaining time."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}

    @contextmanager
    def shown(self) -> Iterator[_Bars]:
        """Show it on a terminal; elsewhere nothing."""
        if not self._terminal.live:
            yield self
            return
        from rich import progress

        with self._terminal.bars(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        ) as self._progress:
            yield self
        self._progress = None

    def pulled(self, event: Event) -> None:
        """Something was fetched."""
        match event:
            case Resolved(content):
                self._sizes = {one.digest: one.size for one in content}
            case Advanced(digest, done):
                self._done[digest] = done
            case Arrived(digest):
                self._done[digest] = self._sizes.get(digest, 0)
        self._show()

    def pushed(self, event: Sent | Sending) -> None:
        """Something was sent."""
        one = event.descriptor
        self._sizes[one.digest] = one.size
        self._done[one.digest] = event.done if isinstance(event, Sending) else one.size
        self._show()

    def _show(self) -> None:
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task("content", total=None)
        self._progress.update(
            self._task, total=sum(self._sizes.values()), completed=sum(self._done.values())
        )
