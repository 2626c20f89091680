"""Images that umoci built, unpacked by us and by it, must be the same tree; skopeo takes ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, NotFoundError, VerificationError
from bedstone.images import digests
from bedstone.images.bundles import load
from bedstone.images.collection import collect
from bedstone.images.models import Platform
from bedstone.images.opening import open_image
from bedstone.images.reference import Reference
from bedstone.images.roots import prepare_root, root_path
from bedstone.images.saving import save
from bedstone.images.store import ContentStore
from bedstone.images.unpacking import unpack
from bedstone.testing.registry import running_registry

_AMD = Platform(os="linux", architecture="amd64")
_NAME = Reference.parse("localhost/app:two")
_COPY = ["skopeo", "--insecure-policy", "copy", "-q"]

pytestmark = [
    pytest.mark.skipif(
        shutil.which("umoci") is None,
        reason="umoci is not installed (Debian: apt-get install umoci)",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices and give files away"),
]
needs_skopeo = pytest.mark.skipif(
    shutil.which("skopeo") is None,
    reason="skopeo is not installed (Debian: apt-get install skopeo)",
)


def run(*arguments: str | Path) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"


def fill(root: Path) -> None:
    """The first layer: a small system, and every kind of file."""
    for name in ("bin", "etc", "dev", "home/ann", "usr/lib", "var/log", "tmp", "opt/deep/er/still"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox") or "/bin/sh"
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "ls", "cat"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "lib").symlink_to("usr/lib")
    (root / "abs").symlink_to("/etc/passwd")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "etc/shadow").write_text("secret")
    (root / "etc/shadow").chmod(0o600)
    os.link(root / "etc/passwd", root / "etc/passwd-")
    os.link(root / "bin/busybox", root / "opt/deep/busybox")
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "dev/loop", 0o660 | stat.S_IFBLK, os.makedev(7, 300))
    os.mkfifo(root / "dev/fifo", 0o620)
    (root / "tmp").chmod(0o1777)
    (root / "bin/su").write_bytes(b"su")
    os.chown(root / "bin/su", 0, 42)
    (root / "bin/su").chmod(0o6755)
    os.chown(root / "home/ann", 1000, 1000)
    (root / "home/ann").chmod(0o700)
    for number in range(30):
        place = root / "home/ann" / f"file {number} ü"
        place.write_bytes(os.urandom(number * 700))
        os.chown(place, 1000, 70000 + number)
        os.utime(place, ns=(0, 1_500_000_000_123_456_789 + number * 10**12))
    os.setxattr(root / "etc/passwd", "user.mark", b"value\0with\xffbytes")
    os.setxattr(root / "var/log", "user.mark", b"of a directory")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(root / "bin/busybox", "security.capability", capability)
    with (root / "var/sparse").open("wb") as file:
        file.seek(8_000_000)
        file.write(b"in the middle")
        file.truncate(20_000_000)
    for number in range(5):
        (root / "opt/deep/er/still" / str(number)).write_text(str(number))
    (root / ("n" * 200)).mkdir()
    (root / ("n" * 200) / ("m" * 200)).write_text("long")


def change(root: Path) -> None:
    """The second layer: what is removed, replaced and changed."""
    (root / "etc/shadow").unlink()
    shutil.rmtree(root / "opt/deep/er")
    (root / "opt/deep/er").write_text("a file now")
    (root / "home/ann/file 3 ü").chmod(0o4711)
    os.chown(root / "home/ann/file 4 ü", 5, 6)
    (root / "home/ann/file 5 ü").write_text("changed")
    (root / "bin/ls").unlink()
    (root / "bin/ls").mkdir()
    (root / "bin/ls/inside").write_text("x")
    (root / "dev/loop").unlink()
    (root / "usr/lib/new.so").write_text("x")
    os.link(root / "usr/lib/new.so", root / "usr/lib/new.so.1")
    (root / "var/log").chmod(0o2750)


def raw_layer(path: Path) -> None:
    """The third: an opaque directory, and entries that go through a link of a lower layer."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("home/ann/only", b"what is left"),
            ("home/ann/.wh..wh..opq", b""),
            ("lib/through.so", b"y"),
            ("usr/.wh.nothing", b""),
            ("never/.wh.there", b""),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_600_000_000
            archive.addfile(info, BytesIO(data))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the images `one`, `two` and `three` of as many layers."""
    place = tmp_path_factory.mktemp("umoci")
    image = place / "app"
    run("umoci", "init", "--layout", image)
    run("umoci", "new", "--image", f"{image}:zero")
    run("umoci", "unpack", "--image", f"{image}:zero", place / "bundle")
    fill(place / "bundle/rootfs")
    run("umoci", "repack", "--image", f"{image}:one", "--refresh-bundle", place / "bundle")
    change(place / "bundle/rootfs")
    run("umoci", "repack", "--image", f"{image}:two", "--refresh-bundle", place / "bundle")
    raw_layer(place / "layer.tar")
    run("umoci", "tag", "--image", f"{image}:two", "three")
    run("umoci", "raw", "add-layer", "--image", f"{image}:three", place / "layer.tar")
    return image


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "images")


def seen(root: Path) -> dict[str, Any]:
    """All that a user can see of each file of a tree."""
    found: dict[str, Any] = {}
    inodes: dict[int, list[str]] = {}
    for at, folders, files in os.walk(root):
        for name in [".", *folders, *files] if at == str(root) else [*folders, *files]:
            path = Path(at, name)
            state = path.lstat()
            shown = str(path.relative_to(root))
            content: Any = None
            if stat.S_ISREG(state.st_mode):
                content = state.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(state.st_mode):
                content = str(path.readlink())
            elif stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):
                content = state.st_rdev
            if not stat.S_ISDIR(state.st_mode):
                inodes.setdefault(state.st_ino, []).append(shown)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            owners = state.st_uid, state.st_gid
            time = state.st_mtime_ns if shown != "." else 0
            found[shown] = [oct(state.st_mode), owners, time, content, xattrs, state.st_ino]
    return {name: [*facts[:-1], sorted(inodes.get(facts[-1], []))] for name, facts in found.items()}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    }


@pytest.fixture
def loaded(store: ContentStore, layout: Path) -> ContentStore:
    assert len(load(store, layout)) == 4
    return store


@pytest.mark.parametrize("tag", ["one", "two", "three"])
def test_a_tree_is_as_umoci_unpacks_it(
    loaded: ContentStore, layout: Path, tmp_path: Path, tag: str
) -> None:
    image = open_image(loaded, Reference.parse(f"localhost/app:{tag}"), _AMD)
    unpacked = unpack(loaded, image, tmp_path / "ours")
    assert unpacked.left_out == ()
    assert unpacked.owners_kept
    run("umoci", "unpack", "--image", f"{layout}:{tag}", tmp_path / "theirs")
    ours, theirs = seen(tmp_path / "ours"), seen(tmp_path / "theirs/rootfs")
    assert difference(ours, theirs) == {}
    assert len(ours) > 15
    if tag == "one":
        assert ours["dev/null"][3] == os.makedev(1, 3)
        assert ours["etc/passwd"][5 - 1]["user.mark"] == b"value\0with\xffbytes"
        assert (tmp_path / "ours/var/sparse").stat().st_blocks * 512 < 1_000_000
    if tag == "three":
        assert {name for name in ours if name.startswith("home/ann/")} == {"home/ann/only"}


def test_a_program_of_an_unpacked_root_runs(loaded: ContentStore, tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed (Debian: apt-get install busybox-static)")
    path, _ = prepare_root(loaded, open_image(loaded, _NAME, _AMD))
    done = subprocess.run(
        ["/bin/sh", "-c", "/bin/cat /etc/passwd"],
        capture_output=True,
        check=False,
        preexec_fn=lambda: os.chroot(path),
    )
    assert done.stdout == b"root:x:0:0::/:/bin/sh\n"


def test_a_root_is_unpacked_once_and_goes_with_its_image(loaded: ContentStore) -> None:
    image = open_image(loaded, _NAME, _AMD)
    path, first = prepare_root(loaded, image)
    assert path == root_path(loaded, image.descriptor.digest)
    assert (loaded.root / "roots").stat().st_mode & 0o777 == 0o700
    inode = path.stat().st_ino
    assert prepare_root(loaded, image) == (path, first)
    assert path.stat().st_ino == inode
    collect(loaded)
    assert path.is_dir()
    loaded.unname(_NAME)
    loaded.lease("box").add(image.root.digest)
    collect(loaded)
    assert path.is_dir()
    loaded.lease("box").release()
    collect(loaded)
    assert [one.name for one in (loaded.root / "roots").iterdir() if one.is_dir()] == []


def test_a_root_that_was_cut_is_never_taken_for_whole(
    loaded: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(loaded, _NAME, _AMD)
    layer = image.layers[1][0]
    place = loaded.path(layer.digest)
    good = place.read_bytes()
    place.chmod(0o644)
    place.write_bytes(good[:-2000])
    with pytest.raises(InvalidError):
        prepare_root(loaded, image)
    assert not root_path(loaded, image.descriptor.digest).exists()
    place.write_bytes(good)
    left = root_path(loaded, image.descriptor.digest)
    (left.parent / f".{left.name}.new/half").mkdir(parents=True)
    path, _ = prepare_root(loaded, image)
    assert not (path / "half").exists()


def test_a_layout_with_a_wrong_blob_is_refused(
    store: ContentStore, layout: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(layout, copy)
    index = json.loads((copy / "index.json").read_bytes())
    blobs = copy / "blobs/sha256"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[1000] ^= 1
    largest.write_bytes(data)
    with pytest.raises(VerificationError):
        load(store, copy)
    assert all(digests.of(store.path(digest).read_bytes()) == digest for digest, _ in store.blobs())
    largest.unlink()
    with pytest.raises(NotFoundError):
        load(store, copy)
    assert index["manifests"]


def test_layouts_and_archives_go_out_and_come_back(
    loaded: ContentStore, tmp_path: Path, layout: Path
) -> None:
    root = loaded.resolve(_NAME)
    for place in ("folder", "file.tar", "file.tar.gz"):
        save(loaded, _NAME, tmp_path / place)
        other = ContentStore(tmp_path / "stores" / place)
        (named,) = load(other, tmp_path / place)
        assert (named.reference, named.descriptor.digest) == (_NAME, root.digest)
    save(loaded, _NAME.tagged("one"), tmp_path / "folder")
    other = ContentStore(tmp_path / "stores" / "both")
    assert len(load(other, tmp_path / "folder")) == 2
    (named,) = load(other, tmp_path / "folder", tag="one", name=_NAME.tagged("x"))
    assert named.reference.tag == "x"
    with pytest.raises(NotFoundError, match="tagged none"):
        load(other, tmp_path / "folder", tag="none")
    with pytest.raises(InvalidError, match="2 images"):
        load(other, tmp_path / "folder", name=_NAME)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    for wrong in (tmp_path / "other", layout / "index.json"):
        with pytest.raises(InvalidError):
            load(other, wrong)
    with pytest.raises(InvalidError, match="expected an OCI image layout"):
        save(loaded, _NAME, tmp_path / "other")


@needs_skopeo
def test_skopeo_reads_what_we_write_and_we_what_it_writes(
    loaded: ContentStore, tmp_path: Path
) -> None:
    save(loaded, _NAME, tmp_path / "ours.tar")
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    run(*_COPY, f"docker-archive:{ours}", f"oci:{tmp_path}/a:two")
    run(*_COPY, f"oci-archive:{ours}:two", f"docker-archive:{theirs}:localhost/app:two")
    other = ContentStore(tmp_path / "other")
    (named,) = load(other, tmp_path / "theirs.tar")
    assert named.reference == _NAME
    unpack(other, open_image(other, _NAME, _AMD), tmp_path / "there")
    unpack(loaded, open_image(loaded, _NAME, _AMD), tmp_path / "here")
    assert difference(seen(tmp_path / "here"), seen(tmp_path / "there")) == {}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_registry(scheme="none") as registry:
        yield registry.host


@needs_skopeo
def test_skopeo_speaks_to_the_registry_of_tests(server: str, layout: Path, tmp_path: Path) -> None:
    run(*_COPY, "--dest-tls-verify=false", f"oci:{layout}:two", f"docker://{server}/app:two")
    run(*_COPY, "--src-tls-verify=false", f"docker://{server}/app:two", f"oci:{tmp_path}/back:two")
    there = {path.name for path in (layout / "blobs/sha256").iterdir()}
    assert {path.name for path in (tmp_path / "back/blobs/sha256").iterdir()} <= there
