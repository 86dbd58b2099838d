"""One authority follows another: who signs and who is believed in each phase, and crashes at each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from aggregator import authorities as rollover
from aggregator.authorities import Authorities, Phase
from aggregator.authority import Authority, Callers, der_to_pem
from aggregator.founding import Ports, found_fleet, renew_server
from fedless.protocol import identity
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.succession import follow
from fedless.protocol.trust import TrustKind

NOW_MS = 1_790_000_000_000
DEVICE = identity.Name("home", identity.Role.DEVICE, "dev-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found_fleet(tmp_path / "home", "home", "127.0.0.1", Ports(0, 0, 0), NOW_MS)
    return tmp_path / "home" / "authority"


def leaf(authority: Authority) -> bytes:
    return authority.issue(DEVICE, identity.make_csr(identity.new_key()), NOW_MS, 90).chain_der[0]


def load(folder: Path) -> Authorities:
    return Authorities.load(folder, "home")


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises((LocalError, PeerError)) as caught:
        call()
    return caught.value.code


def steps(folder: Path) -> list[Callable[[], Authorities]]:
    return [
        lambda: rollover.begin(folder, "home", NOW_MS),
        lambda: rollover.issue(folder, "home"),
        lambda: rollover.retire(folder, "home", NOW_MS),
    ]


def test_phases_say_who_signs_and_who_is_believed(folder: Path) -> None:
    old = load(folder).issuing
    begin, issue, retire = steps(folder)
    assert load(folder).phase is Phase.SETTLED
    assert load(folder).ders == (old.der,)
    cross = begin()
    new = cross.believed[1]
    assert (cross.issuing.der, cross.serving.der, cross.ders) == (old.der, old.der, (old.der, new.der))
    now = issue()
    assert (now.issuing.der, now.serving.der, now.ders) == (new.der, old.der, (old.der, new.der))
    after = retire()
    assert (after.issuing.der, after.serving.der, after.ders) == (new.der, new.der, (new.der,))
    assert not list(folder.glob("next.*"))
    assert (folder / "trusted.pem").read_bytes() == new.pem
    assert follow("home", TrustKind.AUTHORITY, (old.der,), 0, after.lists)[0] == (new.der,)


def test_device_that_was_away_until_the_second_roll_over_follows(folder: Path) -> None:
    first = load(folder).issuing
    for _ in range(2):
        for step in steps(folder):
            step()
    now = load(folder)
    assert follow("home", TrustKind.AUTHORITY, (first.der,), 0, now.lists)[0] == (now.issuing.der,)


def test_certificates_of_both_count_until_the_old_authority_is_dropped(folder: Path) -> None:
    begin, issue, retire = steps(folder)
    old_leaf = leaf(begin().issuing)
    new_leaf = leaf(issue().issuing)
    callers = Callers(load(folder).ders, "home")
    for der in (old_leaf, new_leaf):
        assert callers.admit(der_to_pem(der), NOW_MS).name == DEVICE
        assert callers.member(der, NOW_MS).client_id == "dev-1"
    assert load(folder).chain(old_leaf)[1] == load(folder).serving.der
    assert load(folder).chain(new_leaf)[1] == load(folder).issuing.der
    callers = Callers(retire().ders, "home")
    assert callers.admit(der_to_pem(new_leaf), NOW_MS).name == DEVICE
    assert code_of(lambda: callers.admit(der_to_pem(old_leaf), NOW_MS)) is Code.FOREIGN_CERTIFICATE


def test_steps_out_of_order_are_refused(folder: Path) -> None:
    begin, issue, retire = steps(folder)
    assert code_of(issue) is Code.WRONG_STATE
    assert code_of(retire) is Code.WRONG_STATE
    begin()
    assert code_of(begin) is Code.WRONG_STATE
    assert code_of(retire) is Code.WRONG_STATE


def test_servers_keep_their_certificates_until_the_end(folder: Path) -> None:
    server = folder.parent / "aggregator"
    key = (server / "cert.key").read_bytes()
    *before, retire = steps(folder)
    for step in before:
        assert not renew_server(server, step().serving, identity.Role.AGGREGATOR, NOW_MS)
    new = retire().serving
    assert renew_server(server, new, identity.Role.AGGREGATOR, NOW_MS)
    assert (server / "cert.key").read_bytes() == key
    chain = x509.load_pem_x509_certificates((server / "cert.pem").read_bytes())
    assert new.signed(identity.certificates((server / "cert.pem").read_bytes())[0])
    assert len(chain) == 2


def test_operators_folder_follows(folder: Path) -> None:
    operator = folder.parent / "operator"
    for step in steps(folder):
        now = step()
        assert rollover.renewed_operator(operator, now, NOW_MS)
        assert (operator / "authority.pem").read_bytes() == now.pem
        assert now.issuing.signed(identity.certificates((operator / "cert.pem").read_bytes())[0])
    assert not rollover.renewed_operator(folder.parent / "elsewhere", load(folder), NOW_MS)


def test_list_of_revoked_certificates_is_signed_by_all_who_are_believed(folder: Path) -> None:
    now = rollover.begin(folder, "home", NOW_MS)
    text = now.revocation_list(["a1"], NOW_MS)
    pieces = [piece for piece in text.split(b"-----END X509 CRL-----\n") if piece.strip()]
    found = [x509.load_pem_x509_crl(piece + b"-----END X509 CRL-----\n") for piece in pieces]
    assert [crl.issuer for crl in found] == [x509.load_der_x509_certificate(der).subject for der in now.ders]
    assert found[0].issuer != found[1].issuer
    assert all(crl.get_revoked_certificate_by_serial_number(0xA1) is not None for crl in found)


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("write", range(1, 8))
def test_power_cut_in_a_step_leaves_the_phase_before_or_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, write: int
) -> None:
    class PowerCut(BaseException):
        pass

    every = steps(folder)
    for before in every[:step]:
        before()
    phase, done = load(folder).phase, [0]
    real_rename, real_replace = Path.rename, Path.replace

    def cut(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def move(path: Path, target: Path) -> Path:
            done[0] += 1
            if done[0] == write:
                raise PowerCut
            return real(path, target)

        return move

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut(real_rename))
        patch.setattr(Path, "replace", cut(real_replace))
        try:
            every[step]()
        except PowerCut:
            pass
        else:
            assert done[0] < write, "the cut must come unless all was done"
    now = load(folder)
    following = (Phase.CROSS_TRUST, Phase.ISSUING, Phase.SETTLED)[step]
    assert now.phase in {phase, following}
    if now.phase is phase:
        now = every[step]()
    assert now.phase is following
    assert now.issuing.signed(leaf(now.issuing)), "key and certificate fit"
    leaf_der = leaf(now.issuing)
    assert Callers(now.ders, "home").admit(der_to_pem(leaf_der), NOW_MS).name == DEVICE


def test_damaged_state_is_named(folder: Path) -> None:
    for text in ("{", "[]", json.dumps({"phase": "dawn", "lists": []}), json.dumps({"phase": "settled"})):
        (folder / "rollover.json").write_text(text)
        assert code_of(lambda: load(folder)) is Code.STATE_CORRUPT
    (folder / "rollover.json").write_text(json.dumps({"phase": "cross-trust", "lists": []}))
    assert code_of(lambda: load(folder)) is Code.STATE_MISSING
