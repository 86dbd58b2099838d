"""`fedless backup` of a service that runs, and `fedless restore`: the devices of before are known to the new one."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from aggregator.founding import Ports
from fedless.protocol import identity
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import Code
from fedless.v1 import fleet_pb2
from tests.running_fleet import RunningFleet, fedless, refusal, refusals

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]


@pytest.mark.long
def test_backup_of_a_running_service_is_served_again(tmp_path: Path) -> None:
    fleet = RunningFleet(tmp_path / "home", ports=Ports(0, 0, 0))
    archive, bare = tmp_path / "home.tar", tmp_path / "bare.tar"
    try:
        fleet.start()
        known = fleet.device("dev-1")
        unused = parse_claim(fleet.claim("dev-2")).secret
        done = fedless("backup", archive, "--with-keys", "--fleet", fleet.folder)
        assert done.returncode == 0, done.stderr
        assert "Encrypt it" in done.stderr
        assert "no private key" in fedless("backup", bare, "--fleet", fleet.folder).stderr
        late = fleet.device("dev-3")
        fleet.stop()

        assert fedless("restore", archive, fleet.folder).returncode == 1, "the old one is still there"
        fleet.folder.rename(tmp_path / "gone")
        restored = fedless("restore", archive, fleet.folder)
        assert restored.returncode == 0, restored.stderr
        fleet.start()
        request = fleet_pb2.DeviceStatus()
        with fleet.calls(known) as calls:
            refusals(lambda: calls.fleet.ReportStatus(request, timeout=10))
        with fleet.operator() as operator:
            assert {client.client_id for client in operator.clients()} == {"dev-1", "dev-2"}
        csr = identity.make_csr(identity.new_key())
        assert refusal(lambda: fleet.enroll(unused, csr)).code is Code.CLAIM_EXPIRED
        assert late.chain
    finally:
        fleet.close()
    with tarfile.open(bare) as tar:
        assert [name for name in tar.getnames() if name.endswith(".key")] == []
