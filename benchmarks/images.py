"""Lazy images: what making one costs, how little of it a program reads, and how fast it is read.

    python benchmarks/images.py [--rate 12.5] [--packages]
    python benchmarks/images.py --boxes [--rate 3] [--packages]

The image is the Python that runs this, with its library (`--packages`: and what is installed), in
one gzip layer; the program is that Python, importing json, asyncio, http.client and sqlite3. A
registry on loopback gives `--rate` MB/s in all. Root and Linux 6.12 are needed. Page caches of what
is read cold are dropped for the files in question, not for the machine.

With `--boxes`, what users wait for: `bedstone run` of that image from its registry, which another
machine has pushed it to, until the program's first output; nothing of it is on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from bedstone.images import signatures
from bedstone.images.bundles import load
from bedstone.images.lazy import artifact
from bedstone.images.lazy.mounting import Mounted, best, mount
from bedstone.images.lazy.spec import Origin, Spec
from bedstone.images.opening import Opened, open_image
from bedstone.images.pulling import pull
from bedstone.images.pushing import push
from bedstone.images.reference import Reference
from bedstone.images.referrers import artifacts
from bedstone.images.registry import RegistryClient
from bedstone.images.roots import prepare_root
from bedstone.images.store import ContentStore
from bedstone.testing.layers import oci_layout
from bedstone.testing.registry import running_registry

LARGEST = 64 << 20
"""Bytes of the files that reading is measured with."""

CLI = "from bedstone.cli.main import main; main()"
PROGRAM = "import json, asyncio, http.client, sqlite3"
NAME = Reference.parse("localhost/python:1")


class Registry:
    """One image over HTTP at a limited rate, ranges included."""

    def __init__(self, store: ContentStore, image: Opened, rate: float) -> None:
        self.sent = 0
        outer, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                what = self.path.rsplit("/", 1)[1]
                manifest = "/manifests/" in self.path
                digest = what if ":" in what else image.descriptor.digest
                path, span = store.path(digest), self.headers.get("Range")
                size = path.stat().st_size
                self.send_response(206 if span else 200)
                begin, _, end = (span or "bytes=0-").removeprefix("bytes=").partition("-")
                with path.open("rb") as file:
                    file.seek(int(begin))
                    data = file.read((int(end) + 1 if end else size) - int(begin))
                if span:
                    self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
                if manifest:
                    self.send_header("Content-Type", image.descriptor.media_type)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                for at in range(0, len(data), 32768):
                    part = data[at : at + 32768]
                    with lock:
                        time.sleep(len(part) / rate)
                        outer.sent += len(part)
                    self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server.server_port}/python:1"


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    begin = time.perf_counter()
    yield lambda: time.perf_counter() - begin


async def run_program(root: Path) -> float:
    """Seconds that the program takes from a root."""
    python = root / "bin" / f"python{sysconfig.get_python_version()}"
    with timed() as seconds:
        process = await asyncio.create_subprocess_exec(
            python, "-I", "-B", "-c", PROGRAM, stdin=asyncio.subprocess.DEVNULL
        )
        if await process.wait() != 0:
            raise SystemExit("the program failed")
        return seconds()


def read_all(root: Path, *, cold: bool) -> tuple[int, float]:
    """Bytes of the largest files below a directory, and the seconds that reading them takes."""
    files, room = [], LARGEST
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(found, key=lambda path: (-path.stat().st_size, path)):
        room -= path.stat().st_size
        if room < 0:
            break
        files.append(path)
    if cold:
        for path in files:
            with path.open("rb") as file:
                with suppress(OSError):  # EROFS has nothing to write
                    os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    total, buffer = 0, bytearray(1 << 20)
    with timed() as seconds:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
        return total, seconds()


def speed(found: tuple[int, float]) -> str:
    return f"{found[0] / found[1] / 1e6:,.0f} MB/s"


async def refuse(target: Path) -> None:
    raise SystemExit(f"nothing could be mounted at {target}")


class Form:
    """One form of a lazy image, measured."""

    def __init__(
        self, scratch: Path, store: ContentStore, image: Opened, form: artifact.Form
    ) -> None:
        self.scratch, self.store, self.image, self.form = scratch, store, image, form
        self.touched: list[int] = []

    def make(self, plain_bytes: int) -> None:
        with timed() as seconds:
            begun = time.process_time()
            artifact.build(self.store, self.image, self.form)
            took, used = seconds(), time.process_time() - begun
        self.lazy = artifact.load(self.store, artifact.find(self.store, self.image))
        apart = [self.lazy.table.encode(), *(it.encode() for it in self.lazy.spans.values())]
        self.bytes = sum(blob.size for blob in self.lazy.table.blobs)
        print(
            f"{self.form}: made at {plain_bytes / took / 1e6:.0f} MB/s of tar "
            f"({plain_bytes / used / 1e6:.0f} MB a second of CPU); metadata "
            f"{len(self.lazy.metadata) / 1e6:.1f} MB, table and points "
            f"{sum(map(len, apart)) / 1e6:.2f} MB, blobs {self.bytes / 1e6:.1f} MB"
        )

    async def mounted(
        self, rate: float, cache: str, then: Callable[[Mounted, Registry], Awaitable[None]]
    ) -> None:
        """Do something with the image mounted from a registry."""
        run, target = self.scratch / "run", self.scratch / "target"
        shutil.rmtree(run, ignore_errors=True)
        target.mkdir(exist_ok=True)
        registry = Registry(self.store, self.image, rate)
        origins = [Origin(image=registry.name)]
        spec = Spec(run, self.scratch / cache, origins, prefetch=self.touched)
        self.begun = time.perf_counter()
        found = await mount(self.lazy, spec, target, refuse)
        try:
            await then(found, registry)
        finally:
            await found.close()
            registry.server.shutdown()

    async def start(self, found: Mounted, registry: Registry) -> None:
        await run_program(found.target)
        took, fetched = time.perf_counter() - self.begun, registry.sent
        print(
            f"{self.form}, {len(self.touched)} chunks known: mount and run {took:.2f} s, "
            f"{fetched / 1e6:.2f} MB fetched = {fetched / self.bytes:.1%}"
        )
        await asyncio.sleep(2.5)
        self.touched = found.touched()

    async def read(self, found: Mounted, _: Registry) -> None:
        once = await asyncio.to_thread(read_all, found.target, cold=False)
        cold = [await asyncio.to_thread(read_all, found.target, cold=True) for _ in range(2)]
        warm = [await asyncio.to_thread(read_all, found.target, cold=False) for _ in range(2)]
        print(
            f"{self.form}: read {speed(once)} with nothing cached (the registry not limited), "
            f"{best_of(cold)} from the chunk cache, {best_of(warm)} from the page cache"
        )


def best_of(runs: list[tuple[int, float]]) -> str:
    return speed(min(runs, key=lambda run: run[1]))


async def full_pull(scratch: Path, store: ContentStore, image: Opened, rate: float) -> Path:
    registry = Registry(store, image, rate)
    with timed() as seconds:
        async with RegistryClient() as client:
            other = ContentStore(scratch / "pulled")
            reference = Reference.parse(registry.name)
            await pull(other, client, reference)
        root, _ = await asyncio.to_thread(prepare_root, other, open_image(other, reference))
        await run_program(root)
        print(f"full pull, unpack, run: {seconds():.2f} s, {registry.sent / 1e6:.1f} MB")
    runs = [await run_program(root) for _ in range(5)]
    print(f"run from the unpacked root: {statistics.median(runs):.3f} s")
    registry.server.shutdown()
    return root


async def measure(scratch: Path, plain_bytes: int, rate: float) -> None:
    store = ContentStore(scratch / "store")
    load(store, scratch / "layout", tag="1", name=NAME)
    image = open_image(store, NAME)
    packed = sum(layer.size for layer in image.manifest.layers)
    print(f"image: {plain_bytes / 1e6:.1f} MB, {packed / 1e6:.1f} MB as it is transferred")
    root = await full_pull(scratch, store, image, rate)
    for form in FORMS:
        one = Form(scratch, store, image, form)
        one.make(plain_bytes)
        await one.mounted(rate, f"{form}-first", one.start)
        await one.mounted(rate, f"{form}-second", one.start)
        one.touched = []
        await one.mounted(1e12, f"{form}-all", one.read)
    cold = [read_all(root, cold=True) for _ in range(2)]
    warm = [read_all(root, cold=False) for _ in range(2)]
    print(f"plain files: {best_of(cold)} cold, {best_of(warm)} from the page cache")


def native_layer() -> bytes:
    """The shared libraries that Python needs, for a box has none of this machine's."""
    root = Path(sys.base_prefix)
    programs = [root / "bin" / f"python{sysconfig.get_python_version()}"]
    programs += root.glob("lib/python*/lib-dynload/*.so")
    found = {}
    for program in programs:
        shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
        for path in re.findall(r"(/\S+) \(0x", shown.stdout):
            found[Path(path).name] = Path(path)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", dereference=True) as archive:
        for name, path in found.items():
            archive.add(path, f"lib64/{name}" if name.startswith("ld-") else f"lib/{name}")
        for name in ("proc", "dev", "sys", "tmp", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
    return out.getvalue()


async def first_output(home: Path, *arguments: str) -> float:
    """Seconds until a box's first output; it is gone afterwards."""
    python = f"/bin/python{sysconfig.get_python_version()}"
    env = ["-e", "LD_LIBRARY_PATH=/lib", "-e", "PYTHONHOME=/"]
    command = [*env, *arguments, python, "-s", "-B", "-c"]
    with timed() as seconds:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", CLI, "run", "--rm", *command, f"{PROGRAM}; print(1)"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"BEDSTONE_HOME": str(home)},
        )
        assert process.stdout is not None
        if await process.stdout.read(1) != b"1":
            raise SystemExit("the box's program failed")
        took = seconds()
    await process.wait()
    return took


FORMS: list[artifact.Form] = ["converted", "index"]


async def boxes(scratch: Path, rate: float) -> None:
    maker, home = ContentStore(scratch / "maker"), scratch / "home"
    key = ed25519.Ed25519PrivateKey.generate()
    home.mkdir()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (home / "maker.pub").write_bytes(public)
    with running_registry(scheme="none") as registry:
        names = {}
        for form in FORMS:
            names[form] = name = Reference.parse(f"{registry.host}/{form}:1")
            load(maker, scratch / "layout", tag="1", name=name)
            image = open_image(maker, name)
            artifact.build(maker, image, form)
            async with RegistryClient() as client:
                await push(maker, client, name)
        size = sum(layer.size for layer in image.manifest.layers)
        root, _ = await asyncio.to_thread(prepare_root, maker, image)
        await first_output(home, str(root))  # finds out which runtime works here
        print(f"image of {size / 1e6:.1f} MB as it is transferred, at {rate / 1e6:.1f} MB/s")
        print(f"box of a directory: {await first_output(home, str(root)):.2f} s to first output")
        registry.faults.bytes_per_second = rate

        async def measured(what: str, *arguments: str) -> None:
            before = registry.sent()
            took = await first_output(home, *arguments)
            sent = registry.sent() - before
            print(f"{what}: {took:.2f} s, {sent / 1e6:.2f} MB fetched = {sent / size:.1%}")

        for form in FORMS:
            name = names[form]
            shutil.rmtree(home / "images", ignore_errors=True)
            await measured(f"{form}, nothing known", str(name))
            store = ContentStore(home / "images")
            image = open_image(store, name)
            lazy, subject = artifact.find(store, image), image.descriptor.digest
            touched = artifact.remembered(store, image, lazy.digest)
            # What the first machine learned goes to the registry, signed, and to another machine.
            registry.faults.bytes_per_second = None
            artifact.build(maker, open_image(maker, name), form)
            artifact.remember(maker, subject, lazy.digest, touched)
            async with RegistryClient() as client:
                await push(maker, client, name)
                lists = [one.descriptor.digest for one in artifacts(maker, subject)]
                for digest in (subject, *lists):
                    signed = signatures.sign(name, digest, key)
                    await signatures.publish(client, name, digest, signed)
            registry.faults.bytes_per_second = rate
            shutil.rmtree(home / "images")
            policy = home / "image-policy.yaml"
            policy.write_text('images: [{match: "*", signed_by: [maker.pub]}]')
            await measured(f"{form}, a signed list of {len(touched)} read ahead", str(name))
            policy.unlink()
        shutil.rmtree(home / "images")
        await measured("full pull, unpacked", "--no-lazy", str(names["converted"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, help="MB/s of the registry (12.5, boxes 3)")
    parser.add_argument("--boxes", action="store_true", help="boxes until their first output")
    parser.add_argument("--packages", action="store_true", help="a larger image")
    given = parser.parse_args()
    if best()[0] == "plain":
        raise SystemExit(best()[1])
    with tempfile.TemporaryDirectory(prefix="bedstone-images-") as scratch:
        tar = Path(scratch, "python.tar")
        skip = ["--exclude=test", "--exclude=tests", "--exclude=*.a"]
        if not given.packages:
            skip.append("--exclude=site-packages")
        subprocess.run(["tar", "-cf", tar, *skip, "-C", sys.base_prefix, "."], check=True)
        layers = [tar.read_bytes(), *([native_layer()] if given.boxes else [])]
        oci_layout(Path(scratch, "layout"), layers, "1")
        if given.boxes:
            asyncio.run(boxes(Path(scratch), (given.rate or 3) * 1e6))
        else:
            asyncio.run(measure(Path(scratch), tar.stat().st_size, (given.rate or 12.5) * 1e6))


if __name__ == "__main__":
    main()
