"""/healthz, /metrics and the dashboard over real sockets, on a store with a real past."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aggregator.authority import Authority
from aggregator.store import fleet
from aggregator.web import views
from aggregator.web.metrics import Exposition
from aggregator.web.pages import curve
from fedless.protocol.identity import Name, Role
from tests.running_fleet import Credentials, now_ms
from tests.simulation.world import World
from tests.site import LOOPBACK, Site, finished


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world", count=4)
    made = Site(world, tmp_path)
    made.url = await made.web.start(LOOPBACK, 0)
    yield made
    await made.web.stop()
    await world.close()


async def test_health_says_whether_it_can_serve(site: Site) -> None:
    status, body, _ = await site.get("/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ready", "database": "ok", "broker": "connected"})
    site.connected = False
    assert json.loads((await site.get("/healthz/ready"))[1])["broker"] == "away"
    site.world.database.close()
    status, body, _ = await site.get("/healthz/ready")
    assert (status, json.loads(body)["status"]) == (503, "not ready")
    assert (await site.get("/healthz/live"))[0] == 200


async def test_metrics_count_what_happened(site: Site) -> None:
    await finished(site.world)
    status, body, _ = await site.get("/metrics")
    assert status == 200
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert found["fedless_rounds_total", "committed", "plain"] == 2
    assert found["fedless_reports_total",] == 8
    assert found["fedless_runs", "finished"] == 1
    assert found["fedless_round_seconds_count", "plain"] == 2
    assert found["fedless_disk_free_bytes",] > 0
    assert found["process_resident_memory_bytes",] > 0


async def test_no_metric_names_a_client_a_run_or_a_round(site: Site) -> None:
    run_id = await finished(site.world)
    _, body, _ = await site.get("/metrics")
    assert "client-" not in body
    assert run_id not in body
    labels = set(re.findall(r'[{,]([a-z_]+)="', body))
    assert labels <= {"version", "state", "mode", "outcome", "phase", "part", "code", "reason", "direction"}


def test_names_that_a_newer_peer_invents_are_counted_together() -> None:
    none: dict[str, Any] = {
        "clients": {},
        "online": 0,
        "resting": 0,
        "runs": {},
        "rounds": {},
        "round_ms": {},
    }
    totals = views.Totals(
        **none, phase_ms={("plain", "dance"): 2000.0}, reports=0, refusals={"x" * 200: 2, "y": 1, "not_finite": 4},
        losses={"z": 3}, bytes_down=0, bytes_up=0, alarms=0,
    )  # fmt: skip
    body = Exposition().text(totals, 1).decode()
    assert 'fedless_refusals_total{code="other"} 3.0' in body
    assert 'fedless_refusals_total{code="not_finite"} 4.0' in body
    assert 'fedless_losses_total{reason="other"} 3.0' in body
    assert 'part="other"' in body


async def test_pages_show_fleet_run_and_round(site: Site) -> None:
    run_id = await finished(site.world)
    await site.world.database.run(lambda c: fleet.add_claim(c, "pump-1", b"h" * 32, {}, 0, 0))
    status, first, headers = await site.get("/")
    assert status == 200
    assert "default-src 'none'" in headers
    assert run_id in first
    assert "pump-1" in first
    status, run, _ = await site.get(f"/runs/{run_id}")
    assert status == 200
    assert "test accuracy: 0.1250" in run
    assert "<polyline" in run
    assert "http-equiv" not in run, "what has ended does not change"
    status, round_, _ = await site.get(f"/runs/{run_id}/rounds/2")
    assert status == 200
    assert "Where the time went" in round_
    assert "the last that it needed" in round_


async def test_pages_ask_nothing_of_anybody_else(site: Site) -> None:
    run_id = await finished(site.world)
    for path in ("/", f"/runs/{run_id}", f"/runs/{run_id}/rounds/1"):
        _, body, _ = await site.get(path)
        assert "<script" not in body
        assert re.findall(r'(?:src|href)="(?!/)', body) == []
        assert "url(" not in body


async def test_what_is_shown_is_escaped(site: Site) -> None:
    evil = "<script>alert(1)</script>"
    world = site.world
    await world.database.run(lambda c: fleet.add_claim(c, "pump-1", b"h" * 32, {}, 0, 0))
    profile = {"not_before_ms": now_ms() + 10**9, "not_before_reason": evil, "tflite_runtime": evil}
    await world.database.run(lambda c: fleet.set_profile(c, "pump-1", profile, world.clock()))
    _, body, _ = await site.get("/")
    assert "&lt;script&gt;alert(1)" in body
    assert "<script" not in body


@pytest.mark.parametrize(
    "path",
    ["/absent", "/runs/absent", "/runs/../../etc/passwd", "/runs/x/rounds/1", "/runs/x/rounds/%00", "//"],
)
async def test_what_is_not_there_is_said(site: Site, path: str) -> None:
    status, body, _ = await site.get(path)
    assert status == 404
    assert "Traceback" not in body


async def test_nothing_can_be_changed(site: Site) -> None:
    for method in ("POST", "PUT", "DELETE", "CONNECT"):
        status, _, _ = await asyncio.to_thread(site.request, "/", method, {})
        assert status == 405


async def test_rebound_name_is_refused(site: Site) -> None:
    """A page of another site whose name was bent to 127.0.0.1 must not read the dashboard through a browser here."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert (await site.get("/", Host=host))[0] == 403
    for host in ("localhost:7445", "127.0.0.1", "[::1]:7445"):
        assert (await site.get("/", Host=host))[0] == 200


async def test_endless_request_is_cut_off(site: Site) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, int(site.url.rpartition(":")[2]))
    writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(1), 20)
    writer.close()
    assert (await site.get("/healthz/live"))[0] == 200


# -- elsewhere than on loopback: TLS, and an operator's certificate


@pytest.fixture
async def guarded(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The same on an address that counts as not loopback."""
    await site.web.stop()
    monkeypatch.setattr("aggregator.web.server._is_loopback", lambda _host: False)
    site.url = await site.web.start(LOOPBACK, 0)
    return site


def ask(site: Site, who: Credentials | None) -> int:
    context = ssl.create_default_context(cadata=site.authority.pem.decode())
    context.check_hostname = False
    if who is not None:
        (site.folder / "who.pem").write_bytes(who.chain + who.key)
        context.load_cert_chain(site.folder / "who.pem")
    connection = http.client.HTTPSConnection(
        LOOPBACK, int(site.url.rpartition(":")[2]), timeout=20, context=context
    )
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def issued(site: Site, role: Role, name: str) -> Credentials:
    return Credentials.issued(site.authority, Name("test-fleet", role, name), now_ms())


async def test_operator_may_look_over_tls(guarded: Site) -> None:
    assert guarded.url.startswith("https://")
    assert await asyncio.to_thread(ask, guarded, issued(guarded, Role.OPERATOR, "operator")) == 200


async def test_device_that_looks_is_refused(guarded: Site) -> None:
    assert await asyncio.to_thread(ask, guarded, issued(guarded, Role.DEVICE, "pump-1")) == 403


async def test_nobody_looks_without_a_certificate(guarded: Site) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        await asyncio.to_thread(ask, guarded, None)


async def test_operator_of_another_fleet_is_refused(guarded: Site, tmp_path: Path) -> None:
    other = Authority.create("test-fleet", now_ms())
    foreign = Credentials.issued(other, Name("test-fleet", Role.OPERATOR, "operator"), now_ms())
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        await asyncio.to_thread(ask, guarded, foreign)


def test_a_curve_needs_two_values() -> None:
    assert curve([]) is None
