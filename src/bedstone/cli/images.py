"""`bedstone image`: fetch images, look at them, check them, send them, and make room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bedstone.cli.failures import Failed
from bedstone.cli.options import CONTEXT, output_option, teach
from bedstone.cli.terminal import Terminal, asking, clean

if TYPE_CHECKING:
    from bedstone.images.reference import Reference
    from bedstone.images.signatures import PublicKey
    from bedstone.images.store import ContentStore

_LAYOUT, _ARCHIVE = "oci:", "docker-archive:"


@click.group(
    context_settings=CONTEXT,
    help=teach(
        "Fetch images, look at them, check them, send them. They are kept below BEDSTONE_HOME, "
        "/var/lib/bedstone (root) or ~/.local/share/bedstone.",
        ("bedstone image pull python:3.12", "from a registry"),
        ("bedstone image pull oci:DIR", "from a directory with an OCI layout"),
        ("bedstone image ls", "which are here"),
        ("bedstone image verify python:3.12", "whether all of it is as it was"),
        ("bedstone image rm python:3.12 && bedstone image gc", "make room"),
    ),
)
def image() -> None:
    """See `bedstone image --help`."""


def _platform_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="Of an image for several; default: this machine's.",
    )(function)


def _key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--key",
        "keys",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="A public key (PEM, as cosign.pub); one of those given must have signed the image.",
    )(function)


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Fetch an image. What is here already is not fetched again; what was cut goes on. "
        "Credentials are docker's (`docker login`).",
        ("bedstone image pull python:3.12", "for this machine"),
        ("bedstone image pull app:1 --platform linux/arm64", "for another"),
        ("bedstone image pull ghcr.io/o/app:1 --key cosign.pub", "only if it is signed"),
        ("bedstone image pull oci:DIR:TAG", "from an OCI layout, a directory or a .tar"),
        ("bedstone image pull docker-archive:FILE", "what `docker save` wrote"),
        ("bedstone image pull app:1 --lazy", "what is needed to start, if there is a lazy image"),
    ),
)
@click.argument("name")
@_platform_option
@click.option("--all-platforms", is_flag=True, help="Fetch the image for each platform.")
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="REGISTRY=URL",
    help="Ask there first; also BEDSTONE_REGISTRY_MIRRORS.",
)
@click.option(
    "--lazy",
    is_flag=True,
    help="Leave content at the registry if a lazy image is there; what is read comes then.",
)
@_key_option
@output_option
def pull(
    *,
    name: str,
    platform: str | None,
    all_platforms: bool,
    mirrors: Sequence[str],
    keys: Sequence[Path],
    lazy: bool,
    as_json: bool,
) -> None:
    """See `bedstone image pull --help`."""
    with asking(f"pulling {clean(name)}"):
        from bedstone.cli.image_work import load_bundle, pull_image
        from bedstone.errors import InvalidError

        terminal = Terminal(answers=as_json)
        if bundle := _bundle(name):
            if keys or platform or all_platforms or mirrors or lazy:
                raise InvalidError(
                    f"got options of registries with {name}", hint="a bundle is loaded as it is"
                )
            found = load_bundle(_store(), *bundle, terminal)
        else:
            found = asyncio.run(
                pull_image(
                    _store(),
                    name,
                    platform,
                    mirrors,
                    _keys(keys),
                    terminal,
                    every_platform=all_platforms,
                    lazy=lazy,
                )
            )
    if as_json:
        terminal.json([{"name": one, "digest": digest} for one, digest in found])
    else:
        for one, digest in found:
            terminal.answer(f"{one}  {digest}")


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "List the images that are here.",
        ("bedstone image ls", "as a table"),
        ("bedstone image ls -o json", "for programs"),
    ),
)
@output_option
def ls(*, as_json: bool) -> None:
    """See `bedstone image ls --help`."""
    from bedstone.cli.top_view import size
    from bedstone.images.collection import stored_bytes

    store = _store()
    found = [(named, stored_bytes(store, named.descriptor.digest)) for named in store.names()]
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(
            [
                {
                    "name": named.reference.familiar,
                    "digest": named.descriptor.digest,
                    "bytes": count,
                    "updated": named.updated,
                }
                for named, count in found
            ]
        )
    elif found:
        terminal.table(
            ("NAME", "DIGEST", "SIZE", "UPDATED"),
            (
                (
                    clean(named.reference.familiar),
                    named.descriptor.digest[:19],
                    size(count),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(named.updated)),
                )
                for named, count in found
            ),
        )
    else:
        terminal.complain("no image is here; `bedstone image pull NAME` fetches one")


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what an image is: how it is run, its layers, what is attached to it.",
        ("bedstone image inspect python:3.12", "for people"),
        ("bedstone image inspect python:3.12 -o json", "all of it, for programs"),
    ),
)
@click.argument("name")
@_platform_option
@output_option
def inspect(*, name: str, platform: str | None, as_json: bool) -> None:
    """See `bedstone image inspect --help`."""
    from bedstone.cli.image_work import inspection, inspection_lines

    found = inspection(_store(), name, platform)
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found)
        return
    for line in inspection_lines(found):
        terminal.answer(line)


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Check that an image's content is what its digests say and, with --key, who signed it. "
        "Damaged content is removed, so that a pull fetches it again.",
        ("bedstone image verify python:3.12", "the content here"),
        ("bedstone image verify ghcr.io/o/app:1 --key cosign.pub", "and its signature"),
    ),
)
@click.argument("name")
@_key_option
@output_option
def verify(*, name: str, keys: Sequence[Path], as_json: bool) -> None:
    """See `bedstone image verify --help`."""
    from bedstone.cli.image_work import check_content, check_signature

    store = _store()
    terminal = Terminal(answers=as_json)
    with terminal.waiting(f"reading {clean(name)}"):
        report = check_content(store, name)
        if keys:
            report["signature"] = asyncio.run(check_signature(store, name, _keys(keys)))
    if as_json:
        terminal.json(report)
    else:
        terminal.answer(f"{report['digest']}: {report['blobs']} pieces of content are as named")
        for digest in report["damaged"]:
            terminal.complain(f"damaged, and removed: {digest}")
        for digest in report["missing"]:
            terminal.complain(f"missing: {digest}")
        if signature := report.get("signature"):
            terminal.answer(f"signed as {clean(signature['identity'])} by {signature['key']}")
    if report["damaged"] or report["missing"]:
        if not as_json:
            terminal.complain(f"hint: `bedstone image pull {clean(name)}` fetches it again")
        raise Failed(6)


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what an image is made of, by the CycloneDX document that its makers put beside it.",
        ("bedstone image sbom ghcr.io/o/app:1", "its components"),
        ("bedstone image sbom ghcr.io/o/app:1 -o json", "the document, for programs"),
    ),
)
@click.argument("name")
@output_option
def sbom(*, name: str, as_json: bool) -> None:
    """See `bedstone image sbom --help`."""
    import json

    from bedstone.cli.image_work import bill_of_materials
    from bedstone.images.sbom import components

    terminal = Terminal(answers=as_json)
    with asking(f"asking for what {clean(name)} is made of"):
        data = asyncio.run(bill_of_materials(_store(), name))
    if as_json:
        terminal.json(json.loads(data))
        return
    terminal.table(
        ("COMPONENT", "VERSION", "KIND", "LICENSES"),
        (
            tuple(map(clean, (one.name, one.version, one.kind, " ".join(one.licenses))))
            for one in components(data)
        ),
    )


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Forget images. Their content goes with `bedstone image gc`, if nothing else needs it.",
        ("bedstone image rm python:3.12 app:1", "two names"),
    ),
)
@click.argument("names", nargs=-1, required=True)
def rm(*, names: Sequence[str]) -> None:
    """See `bedstone image rm --help`."""
    store = _store()
    references = [_reference(name) for name in names]
    for reference in references:
        store.unname(reference)
        Terminal().say(f"{reference.familiar}: forgotten")


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Remove content that no image and no running box needs.",
        ("bedstone image gc", "what is not used"),
        ("bedstone image gc --partial-after 0", "and all downloads that were cut"),
    ),
)
@click.option(
    "--partial-after",
    type=click.FloatRange(min=0),
    default=86400.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up downloads that were cut and not touched for so long.",
)
@output_option
def gc(*, partial_after: float, as_json: bool) -> None:
    """See `bedstone image gc --help`."""
    from bedstone.cli.top_view import size
    from bedstone.images.collection import collect

    terminal = Terminal(answers=as_json)
    with terminal.waiting("removing what is not used"):
        collected = collect(_store(), partial_after=partial_after)
    if as_json:
        terminal.json({"removed": list(collected.removed), "bytes": collected.freed})
    else:
        count = len(collected.removed)
        terminal.answer(f"{count} pieces of content removed, {size(collected.freed)} freed")


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Make a lazy image of one that is here: boxes start on it before its content is here. "
        "`push` sends it with the image; whoever runs that starts lazily, then.",
        ("bedstone image convert app:1", "content written anew; least is fetched"),
        ("bedstone image convert app:1 --form index", "an index over the layers as they are"),
        ("bedstone image convert app:1 ghcr.io/o/app:1", "and give the image another name"),
        ("bedstone image convert app:1 app:secret --encrypt file:/etc/app.key", "encrypted"),
    ),
)
@click.argument("name")
@click.argument("destination", required=False)
@_platform_option
@click.option(
    "--form",
    type=click.Choice(["converted", "index"]),
    default="converted",
    show_default=True,
    help="Content written anew, or an index over what is there.",
)
@click.option(
    "--encrypt",
    metavar="KEY",
    help="Make an encrypted image named DESTINATION; KEY is a reference, as file:/PATH.",
)
@output_option
def convert(
    *,
    name: str,
    destination: str | None,
    platform: str | None,
    form: Literal["converted", "index"],
    encrypt: str | None,
    as_json: bool,
) -> None:
    """See `bedstone image convert --help`."""
    with asking(f"converting {clean(name)}"):
        from bedstone.cli.image_work import convert_image

        made = convert_image(_store(), name, destination, platform, form, encrypt)
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(made)
    else:
        from bedstone.cli.top_view import size

        kept = f"{size(made['content'])} of content, {size(made['bytes'])} to start with"
        terminal.answer(f"{made['name']}  {made['form']}: {kept}")


@image.command(
    context_settings=CONTEXT,
    help=teach(
        "Send an image to a registry, or write it to a file. What is there already is not sent.",
        ("bedstone image push app:1 ghcr.io/o/app:1", "under another name"),
        ("bedstone image push ghcr.io/o/app:1 --sign-key key.pem", "and sign it, as cosign does"),
        ("bedstone image push app:1 oci:DIR", "as an OCI layout"),
        ("bedstone image push app:1 docker-archive:app.tar", "for `docker load`"),
    ),
)
@click.argument("name")
@click.argument("target", required=False)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A private key (PEM, PKCS 8) to sign the image with.",
)
@output_option
def push(*, name: str, target: str | None, sign_key: Path | None, as_json: bool) -> None:
    """See `bedstone image push --help`."""
    with asking(f"pushing {clean(name)}"):
        from bedstone.cli.image_work import push_image, save_bundle
        from bedstone.errors import InvalidError

        terminal = Terminal(answers=as_json)
        if bundle := _bundle(target or ""):
            if sign_key is not None:
                raise InvalidError("got --sign-key with a file, expected it with a registry")
            digest = save_bundle(_store(), name, *bundle)
        else:
            digest = asyncio.run(push_image(_store(), name, target, sign_key, terminal))
    if as_json:
        terminal.json({"name": target or name, "digest": digest})
    else:
        terminal.answer(f"{target or name}  {digest}")


def _store() -> ContentStore:
    from bedstone.images.home import images_directory
    from bedstone.images.store import ContentStore

    return ContentStore(images_directory())


def _reference(name: str) -> Reference:
    from bedstone.images.reference import Reference

    return Reference.parse(name)


def _keys(paths: Sequence[Path]) -> list[tuple[str, PublicKey]]:
    if not paths:
        return []
    from bedstone.images.signatures import read_public_key

    return [(str(path), read_public_key(path)) for path in paths]


def _bundle(name: str) -> tuple[Path, str | None] | None:
    """The file and the tag of `oci:PATH[:TAG]` or `docker-archive:PATH[:TAG]`."""
    for prefix in (_LAYOUT, _ARCHIVE):
        if name.startswith(prefix):
            path, colon, tag = name.removeprefix(prefix).rpartition(":")
            return (Path(path), tag) if colon else (Path(tag), None)
    return None
