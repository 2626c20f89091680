"""Workloads of images, in each isolation; images that cannot be had, and why it is said."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bedstone.testing.box_programs import busybox
from bedstone.testing.domain import Domain
from bedstone.testing.isolation import missing
from bedstone.testing.layers import entry, folder, symlink, tar
from bedstone.testing.registry import Registry, running_registry
from bedstone.testing.workloads import server

ISOLATIONS = ("container", "gvisor", "microvm")
SAID = """#!/bin/sh
echo
id -u
pwd
env
wget -q -O- http://container/index.html && echo " from container"
wget -q -O- http://other/index.html || echo "not from other"
ls /
"""
HEAD = """\
app: pages
gateway:
  port: PORT
  routes:
"""
WORKLOAD = """\
  NAME:
    image: HOST/pages:TAG
    isolation: NAME
    ready: /index.html
    env: {SAID: manifest}
    start_timeout: 110s
    uses: [USED]
"""


def workload(name: str, isolation: str, tag: str) -> str:
    """Its declaration; all but the first use that one."""
    used = "" if name == "container" else "container"
    text = WORKLOAD.replace("  NAME:", f"  {name}:").replace("NAME", isolation)
    return text.replace("TAG", tag).replace("USED", used)


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """A registry with an image of a web server."""
    program = busybox()
    if program is None:
        pytest.skip("busybox is not static or not there; install it (Debian: busybox-static)")
    names = ("sh", "httpd", "id", "env", "wget", "ls", "pwd")
    layer = tar(
        [
            *(folder(name) for name in ("bin", "etc", "www", "www/cgi-bin", "tmp", "opt")),
            entry("bin/busybox", Path(program).read_bytes(), mode=0o755),
            *(symlink(f"bin/{name}", "busybox") for name in names),
            entry("bin/start", b'#!/bin/sh\nexec "$@"\n', mode=0o755),
            entry("etc/passwd", b"app:x:1234:1234::/:/bin/sh\n"),
            entry("www/index.html", b"a page"),
            entry("www/cgi-bin/said", SAID.encode(), mode=0o755),
        ]
    )
    with running_registry(scheme="none") as running:
        running.add_image(
            "pages",
            [layer],
            "1",
            Entrypoint=["start"],
            Cmd=["httpd", "-f", "-p", "8080", "-h", "/www"],
            Env=["PATH=/bin", "SAID=image", "MADE=image"],
            User="app",
            WorkingDir="/opt",
        )
        yield running


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home of images and boxes of their own; users of boxes may pass through."""
    place = Path(tempfile.mkdtemp(prefix="bedstone-images-"))
    place.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDSTONE_HOME", str(place))
        yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def pages(home: Path, registry: Registry, make_domain: Callable[..., Domain]) -> Iterator[Domain]:
    """One workload in each isolation that there is here."""
    why = missing("container")
    if why:
        pytest.skip(why)
    there = [name for name in ISOLATIONS if not missing(name)]
    domain = make_domain(manifest="app: pages")
    routes = "".join(f"    - {{path: /{name}, to: {name}, strip: true}}\n" for name in there)
    workloads = "".join(workload(name, name, "1") for name in there)
    text = (HEAD + routes + "workloads:\n" + workloads).replace("PORT", str(domain.port))
    (domain.directory / "bedstone.yaml").write_text(text.replace("HOST", registry.host))
    domain.up()
    yield domain
    domain.down()
    assert not list((home / "boxes").glob("*/spec.json")), "nothing is left of its boxes"
    assert not list((home / "boxes/.workloads").iterdir())


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_image_runs_as_its_author_meant(pages: Domain, isolation: str) -> None:
    """Entry point, command, variables, user and folder are its own; the manifest's come first."""
    why = missing(isolation)
    if why:
        pytest.skip(why)
    with httpx.Client(trust_env=False, timeout=20) as client:
        assert client.get(f"{pages.url}/{isolation}/index.html").text == "a page"
        said = client.get(f"{pages.url}/{isolation}/cgi-bin/said").text.splitlines()
    assert said[0] == "1234"
    assert {"SAID=manifest", "MADE=image", "PATH=/bin", f"BEDSTONE_WORKLOAD={isolation}"} <= {*said}
    assert {"bin", "opt", "www"} <= {*said}
    assert not {"home", "var", "usr", "work"} & {*said}, "nothing of this machine is in it"
    if isolation != "container":
        assert "a page from container" in said, "through its proxy, beside the box"
    assert "not from other" in said
    found = server(pages, "/v1/resources/instance")["items"]
    notes = next(
        item["value"]["status"]["limits"]
        for item in found
        if item["value"]["workload"] == isolation
    )
    assert f"isolation: {isolation}" in notes
    assert any(note.startswith("image: ") and "@sha256:" in note for note in notes)


def test_boxes_outlive_their_agent(pages: Domain) -> None:
    """In every isolation: adopted, with their networks."""

    def running() -> dict[str, tuple[int, str]]:
        parts = server(pages, "/v1/apps/pages/status")["parts"]
        instances = (part for part in parts if part["kind"] == "instance")
        return {part["workload"]: (part["pid"], part["state"]) for part in instances}

    before = running()
    agent = pages.kill("node")
    pages.wait(lambda: pages.pids().get("node", agent) != agent, what="another agent")
    pages.wait(lambda: running() == before, what="adopted")
    with httpx.Client(trust_env=False, timeout=20) as client:
        for name in before:
            assert client.get(f"{pages.url}/{name}/index.html").text == "a page"


def test_an_image_that_cannot_be_had_is_named_and_tried_again(
    pages: Domain, registry: Registry
) -> None:
    """A registry that is down, and is back."""
    registry.tags["pages", "2"] = registry.tags["pages", "1"]
    registry.faults.down = True
    more = workload("other", "container", "2").replace("HOST", registry.host)
    manifest = pages.directory / "bedstone.yaml"
    manifest.write_text(manifest.read_text() + more)
    pages.ok("apply", "-f", "bedstone.yaml")

    def detail() -> str:
        for part in server(pages, "/v1/apps/pages/status")["parts"]:
            if part["kind"] == "instance" and part["workload"] == "other":
                return f"{part['state']}: {part['detail']}"
        return ""

    failed = f"pulling {registry.host}/pages:2; before: "
    pages.wait(lambda: failed in detail(), timeout=60, what="why")
    registry.faults.down = False
    pages.wait(lambda: detail().startswith("ready"), timeout=40, what="tried again")
