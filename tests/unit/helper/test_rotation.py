"""The helper's keys follow one another by its own word; what was sealed to the old one is opened until the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.pinned import followed, joined
from fedless.helper import rotation
from fedless.helper.config import KeySettings, load
from fedless.helper.deployed import keys_from_json
from fedless.helper.main import found
from fedless.helper.packaging import secret_text
from fedless.protocol.crypto import ed25519_from_pem, ed25519_public, ed25519_sign, sha256, x25519_public
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.succession import helper_member, sign_list
from fedless.protocol.trust import TrustKind, TrustList

NOW_MS = 1_790_000_000_000
AGGREGATORS, FOREIGN = bytes(range(200, 232)), bytes(range(100, 132))


@pytest.fixture
def keys(tmp_path: Path) -> KeySettings:
    found(tmp_path / "helper", "home", b"the authority")
    return load(tmp_path / "helper" / "helper.toml").keys


def public(keys: KeySettings, name: str = "hpke.pub") -> bytes:
    return bytes.fromhex(keys.hpke.with_name(name).read_text())


def pinned(keys: KeySettings) -> Policy:
    return Policy(helper_key_digest=sha256(public(keys)), helper_signing_key=public(keys, "signing.pub"))


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(LocalError) as caught:
        call()
    return caught.value.code


def begin(keys: KeySettings) -> TrustList:
    return rotation.begin(keys, "home", NOW_MS)


def end(keys: KeySettings) -> TrustList:
    return rotation.end(keys, "home", NOW_MS)


def after(policy: Policy, lists: tuple[TrustList, ...], numbers: dict[str, int] | None = None) -> Policy:
    return followed(policy, "home", lists, {} if numbers is None else numbers)


def test_round_in_flight_is_opened_until_the_end(keys: KeySettings) -> None:
    (old, none) = rotation.own_keys(keys)
    assert none == b""
    begin(keys)
    assert rotation.own_keys(keys)[0] == old
    following = rotation.own_keys(keys)[1]
    assert x25519_public(following) == public(keys, "hpke-next.pub")
    end(keys)
    assert rotation.own_keys(keys) == (following, b"")
    assert public(keys) == x25519_public(following)
    signing = ed25519_from_pem(keys.signing.read_bytes())
    assert public(keys, "signing.pub") == ed25519_public(signing)
    assert not list(keys.hpke.parent.glob("*-next*")), (
        "the old keys are gone, and the next ones have their names"
    )


def test_device_follows_and_gives_the_old_one_up_at_the_end(keys: KeySettings) -> None:
    policy, old = pinned(keys), public(keys)
    numbers: dict[str, int] = {}
    begin(keys)
    new = public(keys, "hpke-next.pub")
    assert policy.pins(old)
    assert not policy.pins(new)
    both = after(policy, rotation.read(keys), numbers)
    assert both.pins(old)
    assert both.pins(new)
    end(keys)
    newest = rotation.read(keys)[-1:]
    for behind, known in ((both, newest), (policy, rotation.read(keys))):
        settled = after(behind, known)
        assert settled.pins(new)
        assert not settled.pins(old)
        assert settled == pinned(keys)
    assert numbers == {"helper": rotation.read(keys)[0].number}


def test_device_follows_two_rotations_at_once(keys: KeySettings) -> None:
    policy = pinned(keys)
    for _ in range(2):
        begin(keys)
        end(keys)
    assert after(policy, rotation.read(keys)) == pinned(keys)
    assert [each.number for each in rotation.read(keys)] == sorted({e.number for e in rotation.read(keys)})


@pytest.mark.parametrize("secret", [AGGREGATORS, FOREIGN], ids=["aggregator", "stranger"])
def test_aggregator_cannot_swap_the_helper(keys: KeySettings, secret: bytes) -> None:
    """By its own key, or in the name of the helper, with the pinned one still in the list or without it."""
    policy = pinned(keys)
    own = helper_member(ed25519_public(secret), bytes(32))
    for signer in (own, policy.helpers[0]):
        for members in ((own,), (policy.helpers[0], own)):
            forged = sign_list(
                "home", TrustKind.HELPER, 7, members, signer, lambda message: ed25519_sign(secret, message)
            )
            numbers: dict[str, int] = {}
            assert after(policy, (forged,), numbers) is policy
            assert numbers == {}
    told = Policy(helper_key_digest=policy.helper_key_digest)
    begin(keys)
    assert after(told, rotation.read(keys)) is told, "no signing key is pinned: the owner's wish alone counts"


def test_rollback_to_an_older_list_of_helpers_is_refused(keys: KeySettings) -> None:
    begin(keys)
    end(keys)
    first, second = rotation.read(keys)
    policy, numbers = pinned(keys), {"helper": second.number}
    assert after(policy, (first,), numbers) is policy
    assert after(policy, (second,), numbers) is policy, "the same once more"
    assert numbers == {"helper": second.number}


def test_list_for_another_fleet_is_refused(keys: KeySettings) -> None:
    policy = pinned(keys)
    rotation.begin(keys, "garden", NOW_MS)
    assert after(policy, rotation.read(keys)) is policy


def test_new_device_in_the_middle_of_a_rotation_follows_it_too(keys: KeySettings) -> None:
    begin(keys)
    old, numbers = pinned(keys), {"helper": 1, "ticket": 5}
    lists = rotation.read(keys)
    both = joined(old, "home", lists, numbers)
    assert both.pins(public(keys, "hpke-next.pub"))
    assert numbers == {"helper": lists[0].number, "ticket": 5}
    new = Policy(  # it joined when rounds were opened for the new key already
        helper_key_digest=sha256(public(keys, "hpke-next.pub")),
        helper_signing_key=public(keys, "signing-next.pub"),
    )
    later: dict[str, int] = {}
    assert joined(new, "home", lists, later) == new
    end(keys)
    for policy, known in ((both, numbers), (new, later)):
        assert followed(policy, "home", rotation.read(keys)[1:], known) == pinned(keys)
    stranger = Policy(helper_key_digest=bytes(32), helper_signing_key=bytes(32))
    nothing: dict[str, int] = {"helper": 9}
    assert joined(stranger, "home", lists, nothing) is stranger
    assert nothing == {}


def test_steps_out_of_order_are_refused(keys: KeySettings) -> None:
    assert code_of(lambda: end(keys)) is Code.WRONG_STATE
    begin(keys)
    assert code_of(lambda: begin(keys)) is Code.WRONG_STATE
    end(keys)
    assert code_of(lambda: end(keys)) is Code.WRONG_STATE
    keys.signing.unlink()
    assert code_of(lambda: begin(keys)) is Code.STATE_MISSING


@pytest.mark.parametrize("step", [begin, end])
def test_crash_at_any_write_leaves_the_step_before_or_after(
    tmp_path: Path, step: Callable[[KeySettings], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename is a moment at which the power may be cut."""
    rename, cut = Path.replace, 0
    while True:
        folder = tmp_path / str(cut)
        found(folder, "home", b"")
        keys = load(folder / "helper.toml").keys
        if step is end:
            begin(keys)
        before, renames = rotation.own_keys(keys), 0

        def failing(self: Path, target: Path, limit: int = cut) -> Path:
            nonlocal renames
            renames += 1
            if renames > limit:
                raise OSError
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        try:
            step(keys)
        except OSError:
            complete = False
        else:
            complete = True
        monkeypatch.setattr(Path, "replace", rename)
        now = rotation.own_keys(keys)
        following = before[1] if step is end else b""
        assert now in {before, (following, b"")} if step is end else now[0] == before[0]
        assert sha256(x25519_public(now[0])) == sha256(public(keys)), (
            "the public file is that of the key in use"
        )
        assert ed25519_public(ed25519_from_pem(keys.signing.read_bytes())) == public(keys, "signing.pub")
        if complete:
            break
        if now == before:
            step(keys)
        cut += 1
    assert cut > 1


def test_platforms_secret_holds_both(keys: KeySettings) -> None:
    settings = load(keys.hpke.with_name("helper.toml"))
    begin(keys)
    for target in ("google", "aws-lambda"):
        text = secret_text(settings, target, "pw")
        inner = json.loads(text)["Variables"]["FEDLESS_HELPER_KEYS"] if target == "aws-lambda" else text
        given = keys_from_json(inner)
        assert (given.hpke, given.next_hpke) == rotation.own_keys(keys)
        assert given.database_password == "pw"
    end(keys)
    assert keys_from_json(secret_text(settings, "google")).next_hpke == b""
    with pytest.raises(LocalError):
        keys_from_json(
            json.dumps(json.loads(text) | {"next_hpke": "00"}) if target == "google" else inner[:-2]
        )


def test_keys_are_private(keys: KeySettings) -> None:
    begin(keys)
    for path in keys.hpke.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
