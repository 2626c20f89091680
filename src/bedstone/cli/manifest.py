"""`bedstone init` and `bedstone schema`: how a manifest begins, and all that it may say."""

from __future__ import annotations

from pathlib import Path

import click

from bedstone.cli.options import CONTEXT, teach
from bedstone.cli.target import MANIFEST_NAME, shown
from bedstone.cli.terminal import Terminal
from bedstone.errors import ConflictError, UnavailableError


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Write a commented bedstone.yaml to start from.",
        ("bedstone init", "in this directory"),
        ("bedstone init shop", "in a new one"),
    ),
)
@click.argument("directory", default=".", type=click.Path(path_type=Path), metavar="[DIR]")
def init(*, directory: Path) -> None:
    """See `bedstone init --help`."""
    from bedstone.model.template import SAMPLE, SAMPLE_FILE, app_name, template

    path = directory.resolve() / MANIFEST_NAME
    text = template(app_name(path.parent.name))
    sample = path.with_name(SAMPLE_FILE)
    sampled = not sample.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(text)
        if sampled:
            sample.write_text(SAMPLE)
    except FileExistsError as error:
        raise ConflictError(
            f"{shown(path)} exists already", hint="run it with `bedstone up`, or remove it first"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"cannot write {shown(path)}: {error.strerror}",
            hint="make the directory writable for you",
        ) from error
    terminal = Terminal()
    terminal.say(f"wrote {shown(path)}")
    if sampled:
        terminal.say(f"wrote {shown(sample)}, which it runs")
    where = "" if path.parent == Path.cwd() else f" {shown(path.parent)}"
    terminal.say(f"run it: bedstone up{where}")


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Print the manifest's JSON Schema, for editors and validators.",
        ("bedstone schema > bedstone.schema.json", "keep it in a file"),
    ),
)
def schema() -> None:
    """See `bedstone schema --help`."""
    from bedstone.model.schema import json_schema

    Terminal().json(json_schema())
