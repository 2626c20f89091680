"""References: what people write, what it means, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError
from bedstone.images.reference import Reference

_DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("python", "docker.io/library/python:latest", "python:latest"),
        ("python:3.12", "docker.io/library/python:3.12", "python:3.12"),
        ("bob/tool", "docker.io/bob/tool:latest", "bob/tool:latest"),
        ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest", "127.0.0.1:5000/app:latest"),
        ("[::1]:5000/app:2", "[::1]:5000/app:2", "[::1]:5000/app:2"),
        ("ghcr.io/a/b_c/d-e.f:v1", "ghcr.io/a/b_c/d-e.f:v1", "ghcr.io/a/b_c/d-e.f:v1"),
        ("index.docker.io/python", "docker.io/library/python:latest", "python:latest"),
        (f"python@{_DIGEST}", f"docker.io/library/python@{_DIGEST}", f"python@{_DIGEST}"),
        (f"r.io/a:1@{_DIGEST}", f"r.io/a:1@{_DIGEST}", f"r.io/a:1@{_DIGEST}"),
    ],
)
def test_names_mean_what_docker_means(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert Reference.parse(full) == Reference.parse(familiar) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Python",
        "python:",
        "python:a b",
        "python@sha256:12",
        f"python@md5:{'a' * 32}",
        f"python@{_DIGEST.upper()}",
        "a//b",
        "../x",
        "r.io/../x",
        "r.io/a/",
        "/a",
        "-a",
        "a" * 300,
        "python\n",
        "python:3.12\n",
        "exa mple.com/a",
        "host:999999/a",
        "user@host/a",
        "https://r.io/a",
        "r.io:5000",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    if text == "r.io:5000":  # as docker: the image r.io with tag 5000
        assert str(Reference.parse(text)) == "docker.io/library/r.io:5000"
        return
    with pytest.raises(InvalidError) as raised:
        Reference.parse(text)
    assert "\n" not in raised.value.message


def test_a_digest_says_what_is_meant_and_a_tag_is_for_people() -> None:
    both = Reference.parse(f"r.io/a:1@{_DIGEST}")
    assert both.target == _DIGEST
    assert str(both.at(_DIGEST)) == f"r.io/a@{_DIGEST}"
    assert str(both.tagged("2")) == "r.io/a:2"
    with pytest.raises(InvalidError):
        both.tagged("no tag")


@given(st.text(max_size=80))
def test_any_text_is_a_name_that_reads_the_same_again_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidError:
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
