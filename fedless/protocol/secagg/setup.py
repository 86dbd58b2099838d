"""*Pure.* The client's side of a key epoch's set-up: M0 to M3.

Every function takes the client's state and returns a new one; the driver stores it before it sends what came
with it. All of them may be repeated: the same message gives the same answer.
"""

from __future__ import annotations

from dataclasses import replace

from fedless.protocol.crypto import KEY_BYTES, hkdf, seal, unseal, x25519_agreement, x25519_public
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.epochs import COHORT_MAX, SLOTS_MAX
from fedless.protocol.secagg.keys import (
    advance,
    box_nonce,
    channel_private,
    polynomial,
    slot_secrets,
)
from fedless.protocol.secagg.messages import (
    MISSING_SHARE,
    Box,
    EpochKeys,
    EpochShares,
    Inbox,
    Roster,
    Sign,
    VerifyAggregator,
    VerifyMember,
    active_signed,
    self_commitment,
    share_associated,
    share_key_info,
)
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.shamir import SHARE_BYTES, split
from fedless.protocol.secagg.state import ClientState, EpochState, Slot

# -- M0 ----------------------------------------------------------------------------------------


def begin_epoch(
    state: ClientState,
    epoch: int,
    slots: int,
    *,
    chain_key: bytes,
    certificate: bytes,
    sign: Sign,
    rates: tuple[int, int] = (0, 0),
) -> tuple[ClientState, EpochKeys]:
    """Client: join key epoch `epoch` with `slots` slots; M0 to be sent.

    `chain_key`: 32 fresh random bytes (ignored if the epoch was begun before). `certificate`: the own leaf,
    DER. `rates`: MB/s of AES-256-CTR and ChaCha20. A key epoch still in set-up is given up. Raises
    `PeerError(EPOCH_STALE)` for an epoch that is not newer than the last, `OUT_OF_RANGE` for `slots`.
    """
    for kept in state.epochs:
        if kept.epoch == epoch:
            return state, kept.keys
    if epoch <= state.last_epoch:
        raise PeerError(Code.EPOCH_STALE, f"Expected a key epoch above {state.last_epoch}, found {epoch}.")
    if not 1 <= slots <= SLOTS_MAX:
        raise PeerError(Code.OUT_OF_RANGE, f"Expected 1 to {SLOTS_MAX} slots, found {slots}.")
    if len(chain_key) != KEY_BYTES:
        raise LocalError(Code.INTERNAL, f"Expected {KEY_BYTES} random bytes.")
    keys = _epoch_keys(state.client_id, epoch, slots, chain_key, certificate, rates)
    keys = replace(keys, signature=sign(keys.signed))
    begun = EpochState(
        epoch=epoch,
        keys=keys,
        chain_slot=0,
        chain_key=chain_key,
        channel_private=channel_private(chain_key),
    )
    active = tuple(kept for kept in state.epochs if kept.members)[-1:]
    return replace(state, last_epoch=epoch, epochs=(*active, begun)), keys


def _epoch_keys(
    client_id: str, epoch: int, slots: int, chain_0: bytes, certificate: bytes, rates: tuple[int, int]
) -> EpochKeys:
    secrets = [slot_secrets(advance(chain_0, slot), slot) for slot in range(slots)]
    return EpochKeys(
        epoch=epoch,
        client_id=client_id,
        certificate=certificate,
        channel_key=x25519_public(channel_private(chain_0)),
        mask_keys=tuple(x25519_public(secret.mask_private) for secret in secrets),
        commitments=tuple(
            self_commitment(client_id, epoch, slot, secret.self_seed) for slot, secret in enumerate(secrets)
        ),
        aes_mb_per_s=rates[0],
        chacha_mb_per_s=rates[1],
        signature=b"",
    )


# -- M1 -> M2 ----------------------------------------------------------------------------------


def accept_roster(
    state: ClientState,
    roster: Roster,
    policy: Policy,
    *,
    verify_member: VerifyMember,
    verify_aggregator: VerifyAggregator,
) -> tuple[ClientState, EpochShares]:
    """Client: check M1 with suspicion and split the secrets of every slot; M2 to be sent.

    Raises `PeerError`: `POLICY`, `BAD_THRESHOLD`, `BAD_ROSTER`, `BAD_SIGNATURE`, `EPOCH_STALE`,
    `CONFLICTING_REPEAT` (a second, different roster for one key epoch), or what `verify_member` raises.
    """
    epoch = state.epoch(roster.epoch)
    roster_hash = roster.hash
    if epoch.roster_hash:
        if epoch.roster_hash != roster_hash or epoch.shares is None:
            raise PeerError(Code.CONFLICTING_REPEAT, f"Key epoch {roster.epoch} already has a roster.")
        return state, epoch.shares
    _check_shape(roster, epoch.keys)
    if not verify_aggregator(roster.signature, roster.signed):
        raise PeerError(Code.BAD_SIGNATURE, "The roster is not signed by the aggregator.")
    policy.check_mode(roster.mode)
    devices = check_entries(roster, verify_member)
    policy.check_cohort(len(roster.entries), len(devices), roster.threshold)
    index = roster.index_of(state.client_id)
    shares = _seal_shares(epoch, roster, roster_hash, index)
    joined = replace(
        epoch,
        roster=roster,
        roster_hash=roster_hash,
        index=index,
        threshold=roster.threshold,
        devices=devices,
        shares=shares,
    )
    return state.with_epoch(joined), shares


def _check_shape(roster: Roster, own: EpochKeys) -> None:
    """What can be said of a roster without any cryptography."""
    n = len(roster.entries)
    complaints = {
        "masks in pairwise mode": roster.mode is Mode.PAIRWISE,
        f"2 to {COHORT_MAX} members": 2 <= n <= COHORT_MAX,  # noqa: PLR2004
        "a complete graph": roster.neighbours == n - 1,
        "a graph seed of 32 bytes": len(roster.graph_seed) == KEY_BYTES,
        "as many slots as this client made keys for": roster.slots == len(own.mask_keys),
        "an end after its beginning": roster.at_ms <= roster.ends_at_ms,
        "entries of this key epoch": all(entry.epoch == roster.epoch for entry in roster.entries),
        "distinct ids": len({entry.client_id for entry in roster.entries}) == n,
        "distinct keys": len(_all_keys(roster)) == n * (1 + roster.slots),
        "keys of 32 bytes": all(len(key) == KEY_BYTES for key in _all_keys(roster)),
        "a commitment for each slot": all(len(e.commitments) == roster.slots for e in roster.entries),
        "this client's own entry, unchanged": own in roster.entries,
    }
    for expected, found in complaints.items():
        if not found:
            raise PeerError(Code.BAD_ROSTER, f"Expected {expected}.")


def _all_keys(roster: Roster) -> set[bytes]:
    return {key for entry in roster.entries for key in (entry.channel_key, *entry.mask_keys)}


def check_entries(roster: Roster, verify_member: VerifyMember) -> tuple[int, ...]:
    """Verify every entry's certificate and signature; the indices of devices among them.

    Certificates are checked until the key epoch's end: they are backdated, so that covers its beginning.
    Raises `PeerError(BAD_ROSTER)` or `BAD_SIGNATURE`, or what `verify_member` raises.
    """
    devices = []
    owners = set()
    for index, entry in enumerate(roster.entries, start=1):
        member = verify_member(entry.certificate, roster.ends_at_ms)
        check_epoch_keys(entry, member_id=member.client_id)
        if not member.verify(entry.signature, entry.signed):
            raise PeerError(Code.BAD_SIGNATURE, f"The keys of roster entry {index} are not signed by it.")
        owners.add(member.key_bytes)
        if member.is_device:
            devices.append(index)
    if len(owners) != len(roster.entries):
        raise PeerError(Code.BAD_ROSTER, "Two entries have certificates for the same key.")
    return tuple(devices)


def check_epoch_keys(keys: EpochKeys, *, member_id: str) -> None:
    """Both sides: M0's sizes, and that it names the certificate's client. Raises `PeerError(BAD_ROSTER)`."""
    sized = (keys.channel_key, *keys.mask_keys, *keys.commitments)
    if member_id != keys.client_id or any(len(part) != KEY_BYTES for part in sized):
        raise PeerError(Code.BAD_ROSTER, "The keys do not belong to the certificate, or have a wrong size.")
    if len(keys.mask_keys) != len(keys.commitments) or not 1 <= len(keys.mask_keys) <= SLOTS_MAX:
        raise PeerError(Code.BAD_ROSTER, f"Expected keys and commitments for 1 to {SLOTS_MAX} slots.")


def _seal_shares(epoch: EpochState, roster: Roster, roster_hash: bytes, index: int) -> EpochShares:
    points = range(1, len(roster.entries) + 1)
    rows = [_slot_shares(epoch, roster_hash, roster.threshold, slot, points) for slot in range(roster.slots)]
    boxes = []
    agree = x25519_agreement(epoch.channel_private)
    for peer in points:
        if peer == index:
            continue
        shared = agree(roster.entries[peer - 1].channel_key)
        key = hkdf(shared, share_key_info(index, peer), salt=roster_hash)
        nonce = box_nonce(epoch.chain_key, peer)
        plaintext = b"".join(mask[peer - 1] + self_[peer - 1] for mask, self_ in rows)
        associated = share_associated(roster_hash, roster.epoch, index, peer, roster.threshold, roster.slots)
        boxes.append(Box(peer, nonce, seal(key, nonce, plaintext, associated)))
    return EpochShares(roster.epoch, index, tuple(boxes))


def _slot_shares(
    epoch: EpochState, roster_hash: bytes, t: int, slot: int, points: range
) -> tuple[list[bytes], list[bytes]]:
    """Shares of s_r and of b_r at `points`; before M3 the chain key is ck_0."""
    chain_0 = epoch.chain_key
    secrets = slot_secrets(advance(chain_0, slot), slot)
    mask = split(secrets.mask_private, polynomial(chain_0, roster_hash, slot, "mask", t), points)
    self_ = split(secrets.self_seed, polynomial(chain_0, roster_hash, slot, "self", t), points)
    return mask, self_


# -- M3 ----------------------------------------------------------------------------------------


def accept_inbox(
    state: ClientState, inbox: Inbox, policy: Policy, *, verify_aggregator: VerifyAggregator
) -> tuple[ClientState, tuple[int, ...]]:
    """Client: open the boxes of E and keep the shares; also the indices of members whose box failed.

    Afterwards c, the boxes and the roster are erased. Raises `PeerError`: `BAD_SIGNATURE`, `BAD_ROSTER`, or,
    whereupon the driver calls `leave`: `NOT_IN_COHORT`, `TOO_FEW` (E is under the client's minimum or t + 1),
    `BAD_BOX` (more than n - t failures), `CONFLICTING_REPEAT` (another E was accepted before).
    """
    epoch = state.epoch(inbox.epoch)
    if epoch.members:
        if epoch.members != inbox.members:
            raise PeerError(Code.CONFLICTING_REPEAT, "Another set of members was accepted before.")
        return state, ()
    roster = epoch.roster
    if roster is None:
        raise PeerError(Code.WRONG_STATE, "No roster of this key epoch was accepted.")
    if not verify_aggregator(inbox.signature, active_signed(epoch.roster_hash, inbox.members)):
        raise PeerError(Code.BAD_SIGNATURE, "The set of members is not signed by the aggregator.")
    _check_members(epoch, len(roster.entries), inbox.members, policy)
    rows, failed = _open_boxes(epoch, roster, inbox)
    if len(failed) > len(roster.entries) - roster.threshold:
        raise PeerError(Code.BAD_BOX, f"{len(failed)} boxes cannot be opened.")
    active = replace(
        epoch,
        members=inbox.members,
        slots=tuple(_slot_row(epoch, roster, inbox.members, rows, slot) for slot in range(roster.slots)),
        channel_private=b"",
        roster=None,
        shares=None,
    )
    return state.with_epoch(active), failed


def _check_members(epoch: EpochState, n: int, members: tuple[int, ...], policy: Policy) -> None:
    if list(members) != sorted(set(members)) or not all(1 <= index <= n for index in members):
        raise PeerError(Code.BAD_ROSTER, "Expected ascending, distinct indices of the roster.")
    if epoch.index not in members:
        raise PeerError(Code.NOT_IN_COHORT, "This client's shares did not arrive in time.")
    counted = len(members) if policy.count_functions else len(set(members) & set(epoch.devices))
    if counted < policy.minimum_cohort or len(members) < epoch.threshold + 1:
        least = max(policy.minimum_cohort, epoch.threshold + 1)
        raise PeerError(Code.TOO_FEW, f"Expected {least} members or more, found {counted}.")


def _open_boxes(epoch: EpochState, roster: Roster, inbox: Inbox) -> tuple[dict[int, bytes], tuple[int, ...]]:
    """Plaintexts by sender, and the senders of E whose box is missing or cannot be opened."""
    boxes = {box.peer: box for box in inbox.boxes}
    rows: dict[int, bytes] = {}
    agree = x25519_agreement(epoch.channel_private)
    for sender in inbox.members:
        if sender == epoch.index or sender not in boxes:
            continue
        box = boxes[sender]
        shared = agree(roster.entries[sender - 1].channel_key)
        key = hkdf(shared, share_key_info(sender, epoch.index), salt=epoch.roster_hash)
        associated = share_associated(
            epoch.roster_hash, epoch.epoch, sender, epoch.index, roster.threshold, roster.slots
        )
        try:
            plaintext = unseal(key, box.nonce, box.sealed, associated)
        except PeerError:
            continue
        if len(plaintext) == 2 * SHARE_BYTES * roster.slots:
            rows[sender] = plaintext
    failed = tuple(sender for sender in inbox.members if sender != epoch.index and sender not in rows)
    return rows, failed


def _slot_row(
    epoch: EpochState, roster: Roster, members: tuple[int, ...], rows: dict[int, bytes], slot: int
) -> Slot:
    own = range(epoch.index, epoch.index + 1)
    mask, self_ = _slot_shares(epoch, epoch.roster_hash, roster.threshold, slot, own)
    at = 2 * SHARE_BYTES * slot
    both = {sender: plaintext[at : at + 2 * SHARE_BYTES] for sender, plaintext in rows.items()}
    both[epoch.index] = mask[0] + self_[0]
    missing = MISSING_SHARE + MISSING_SHARE
    pairs = [both.get(member, missing) for member in members]
    return Slot(
        number=slot,
        peer_keys=b"".join(roster.entries[member - 1].mask_keys[slot] for member in members),
        mask_shares=b"".join(pair[:SHARE_BYTES] for pair in pairs),
        self_shares=b"".join(pair[SHARE_BYTES:] for pair in pairs),
    )
