"""What people see who type the command alone."""

import pytest

from bedstone.cli.main import run


@pytest.mark.parametrize(("arguments", "listed"), [([], "  doctor "), (["token"], "  create ")])
def test_a_group_alone_shows_its_help_as_it_is_formatted(
    arguments: list[str], listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert "error:" not in shown
    assert any(line.startswith(listed) for line in shown.splitlines())
