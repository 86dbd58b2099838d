"""Local cloud platforms: what is missing is told with what to do; a host serves only the functions of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedless.experiments import host, peers
from fedless.experiments.conditions import Conditions
from fedless.experiments.groups import FUNCTION_KINDS, ClientGroup
from fedless.experiments.processes import Children
from fedless.protocol.errors import Code, LocalError


def test_every_kind_of_function_has_a_peer() -> None:
    assert set(peers.STARTS) == set(FUNCTION_KINDS)


@pytest.mark.parametrize("kind", ["aws-lambda", "google"])
def test_a_platform_that_is_not_installed_is_told_with_what_to_do(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(peers.CLOUDS, str(tmp_path))
    group = ClientGroup(kind, 1)
    place = peers.Place(tmp_path, group, ("fn-1",), Conditions({}), Children(tmp_path / "logs"))
    with pytest.raises(LocalError) as caught:
        peers.STARTS[kind](place)
    assert caught.value.code is Code.NOT_INSTALLED
    assert kind in caught.value.detail
    assert "make demo-mixed" in caught.value.fix


@pytest.mark.parametrize("name", ["", "absent", "../secret", "secret/../secret", "UPPER", "a" * 65])
def test_a_host_knows_no_function_but_those_of_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "group"
    folder.mkdir()
    status, _ = host.Host(folder, host.Settings(1, 1, {})).invoke(name, b"{}")
    assert status == 404
