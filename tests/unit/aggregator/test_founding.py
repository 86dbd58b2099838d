"""A new fleet's directory: complete, private, all of it or nothing."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from aggregator import founding
from aggregator.authority import Authority
from aggregator.config import load
from aggregator.enrollment import terms_of
from fedless.protocol import identity
from fedless.protocol.errors import Code, LocalError

NOW_MS = 1_790_000_000_000
PORTS = founding.Ports(7443, 7444, 8883)


def test_directory_is_private(tmp_path: Path) -> None:
    founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    paths = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
    assert len(paths) > 15
    for path in paths:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"], "a draft was left"


def test_written_configuration_is_read_without_complaint(tmp_path: Path) -> None:
    founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    settings = load(tmp_path / "home" / "aggregator.toml")
    terms = terms_of(settings)
    assert terms.endpoints.fleet == ("192.0.2.1:7443",)
    assert terms.endpoints.mqtt == ("192.0.2.1:8883",)
    assert len(terms.ticket_keys) == len(terms.publisher_keys) == 1
    assert settings.listen.address == founding.ANY


def test_loopback_fleet_listens_on_loopback_only(tmp_path: Path) -> None:
    founding.found_fleet(tmp_path / "home", "home", "127.0.0.1", PORTS, NOW_MS)
    assert load(tmp_path / "home" / "aggregator.toml").listen.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("folder", "role", "common_name", "is_server"),
    [
        ("aggregator", identity.Role.AGGREGATOR, "@aggregator", True),
        ("broker", identity.Role.BROKER, "@broker-main", True),
        ("operator", identity.Role.OPERATOR, "@operator-main", False),
    ],
)
def test_certificates_name_their_role(
    tmp_path: Path, folder: str, role: identity.Role, common_name: str, is_server: bool
) -> None:
    authority = founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    pem = (tmp_path / "home" / folder / "cert.pem").read_bytes()
    chain = x509.load_pem_x509_certificates(pem)
    leaf = chain[0]
    from cryptography.hazmat.primitives.serialization import Encoding

    name, _ = identity.verify_chain(
        [c.public_bytes(Encoding.DER) for c in chain], authority.der, "home", NOW_MS + 1000
    )
    assert name.role is role
    assert leaf.subject.rfc4514_string() == f"CN={common_name}"
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) == is_server
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == (["aggregator.home.fedless"] if is_server else [])


def test_operator_folder_stands_alone(tmp_path: Path) -> None:
    founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    operator = tmp_path / "home" / "operator"
    assert tomllib.loads((operator / "operator.toml").read_text()) == {
        "fleet": "home",
        "endpoints": ["192.0.2.1:7443"],
    }
    assert (operator / "authority.pem").read_bytes() == Authority.load(
        tmp_path / "home" / "authority", "home"
    ).pem


def test_existing_directory_is_not_overwritten(tmp_path: Path) -> None:
    founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    before = {path: path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    with pytest.raises(LocalError) as caught:
        founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    assert caught.value.code is Code.STATE_EXISTS
    assert {path: path.read_bytes() for path in before} == before


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    assert (tmp_path / "home" / "aggregator.toml").is_file()


@pytest.mark.parametrize(
    ("name", "host", "ports", "code"),
    [
        ("Home", "192.0.2.1", PORTS, Code.RESERVED_NAME),
        ("operator", "192.0.2.1", PORTS, Code.RESERVED_NAME),
        ("home", "two words", PORTS, Code.CONFIG_INVALID),
        ("home", "::1", PORTS, Code.CONFIG_INVALID),
        ("home", "192.0.2.1", founding.Ports(7443, 7443, 8883), Code.CONFIG_INVALID),
        ("home", "192.0.2.1", founding.Ports(-1, 7444, 8883), Code.CONFIG_INVALID),
    ],
)
def test_bad_wish_leaves_nothing(
    tmp_path: Path, name: str, host: str, ports: founding.Ports, code: Code
) -> None:
    with pytest.raises(LocalError) as caught:
        founding.found_fleet(tmp_path / "home", name, host, ports, NOW_MS)
    assert caught.value.code is code
    assert list(tmp_path.iterdir()) == []


def test_crash_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr(Path, "rename", cut)  # the first file of the draft is already open then
    with pytest.raises(PowerCut):
        founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    assert list(tmp_path.iterdir()) == []


def test_folder_name_becomes_a_fleet_name() -> None:
    assert founding.fleet_name("My Green_House 2!") == "my-green-house-2"
    assert founding.fleet_name("___") == "fleet"
    assert len(founding.fleet_name("x" * 200)) == 64


def test_server_certificate_is_renewed_in_time_and_keeps_its_key(tmp_path: Path) -> None:
    authority = founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    folder, year_ms = tmp_path / "home" / "aggregator", 365 * 86_400_000
    key, first = (folder / "cert.key").read_bytes(), (folder / "cert.pem").read_bytes()
    assert not founding.renew_server(folder, authority, identity.Role.AGGREGATOR, NOW_MS + 3 * year_ms)
    assert (folder / "cert.pem").read_bytes() == first
    assert founding.renew_server(folder, authority, identity.Role.AGGREGATOR, NOW_MS + 4 * year_ms)
    new = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    assert new.public_key() == x509.load_pem_x509_certificate(first).public_key()
    assert new.not_valid_after_utc > x509.load_pem_x509_certificate(first).not_valid_after_utc
    assert identity.certificate_name(new) == identity.Name("home", identity.Role.AGGREGATOR, "main")
    assert (folder / "cert.key").read_bytes() == key


def test_missing_server_certificate_is_reported(tmp_path: Path) -> None:
    authority = founding.found_fleet(tmp_path / "home", "home", "192.0.2.1", PORTS, NOW_MS)
    (tmp_path / "home" / "broker" / "cert.key").unlink()
    with pytest.raises(LocalError) as caught:
        founding.renew_server(tmp_path / "home" / "broker", authority, identity.Role.BROKER, NOW_MS)
    assert caught.value.code is Code.STATE_MISSING
    (tmp_path / "home" / "broker" / "cert.key").write_text("nonsense")
    with pytest.raises(LocalError) as caught:
        founding.renew_server(tmp_path / "home" / "broker", authority, identity.Role.BROKER, NOW_MS)
    assert caught.value.code is Code.STATE_CORRUPT
