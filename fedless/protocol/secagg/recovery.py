"""*Pure.* The aggregator rebuilds the secrets of one slot from the holders' shares, and finds wrong shares.

Every rebuilt secret is checked: a survivor's self seed against its commitment, an absent member's mask key
against its public key. A failed check means that some holder lied (or the member that dealt the shares): sets
of t holders that leave out one, two, ... of those present are tried until one fits; who was left out lied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice

from fedless.protocol.crypto import x25519_agreement, x25519_public
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg.keys import pair_seed, self_mask_seed
from fedless.protocol.secagg.messages import MISSING_SHARE, Roster, UnmaskResponse, self_commitment
from fedless.protocol.secagg.shamir import SHARE_BYTES, rebuild, weights

TRIES_MAX = 8192
"""Sets of holders tried for one secret, some seconds: any two liars among 128. They are marked, so there are few."""


@dataclass(frozen=True)
class Recovery:
    """Seeds of the streams to add to the sum (`plus`) and to subtract (`minus`); the holders that lied."""

    plus: tuple[bytes, ...] = field(repr=False)
    minus: tuple[bytes, ...] = field(repr=False)
    suspects: tuple[int, ...]


def recover_seeds(
    roster: Roster,
    members: Sequence[int],
    alive: Sequence[int],
    slot: int,
    context: bytes,
    responses: Sequence[UnmaskResponse],
) -> Recovery:
    """The seeds that take the masks of `alive` off their sum.

    Raises `PeerError(TOO_FEW)` or `BAD_SHARE`, as `server.recover`.
    """
    holders = _Holders(roster.threshold, responses)
    survivors = set(alive)
    plus: list[bytes] = []
    minus: list[bytes] = []
    for position, member in enumerate(members):
        entry = roster.entries[member - 1]
        if member in survivors:
            commit = partial(self_commitment, entry.client_id, roster.epoch, slot)
            self_seed = holders.secret(position, commit, entry.commitments[slot])
            minus.append(self_mask_seed(self_seed, context, member))
            continue
        private = holders.secret(position, x25519_public, entry.mask_keys[slot])
        agree = x25519_agreement(private)
        for peer in alive:
            seed = pair_seed(agree, roster.entries[peer - 1].mask_keys[slot], context, member, peer)
            (minus if member > peer else plus).append(seed)
    return Recovery(tuple(plus), tuple(minus), tuple(sorted(holders.liars)))


class _Holders:
    """The holders that answered, and what they say."""

    def __init__(self, threshold: int, responses: Sequence[UnmaskResponse]) -> None:
        self._threshold = threshold
        self._shares = {response.index: response.shares for response in responses}
        self._weights: dict[tuple[int, ...], list[int]] = {}
        self.liars: set[int] = set()

    def secret(self, position: int, public_of: Callable[[bytes], bytes], public: bytes) -> bytes:
        """The secret of the member at `position` of E: `public_of` it is `public`."""
        at = position * SHARE_BYTES
        said = {index: shares[at : at + SHARE_BYTES] for index, shares in self._shares.items()}
        for index in [*self.liars, *(index for index, share in said.items() if share == MISSING_SHARE)]:
            said.pop(index, None)
        if len(said) < self._threshold:
            raise PeerError(Code.TOO_FEW, f"Expected shares of {self._threshold} holders, found {len(said)}.")
        tried: set[tuple[int, ...]] = set()
        for without in islice(self._left_out(tuple(said)), TRIES_MAX):
            points = tuple(index for index in said if index not in without)[: self._threshold]
            secret = None if points in tried else self._try(points, said)
            if secret is not None and public_of(secret) == public:
                self.liars.update(without)
                return secret
            tried.add(points)
        raise PeerError(
            Code.BAD_SHARE, f"Member {position + 1} of E: no set of holders gives a secret that fits."
        )

    def _left_out(self, present: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Whom to leave out, fewest first: of the smallest set that helps, everybody lied."""
        for count in range(len(present) - self._threshold + 1):
            yield from combinations(present, count)

    def _try(self, points: tuple[int, ...], said: dict[int, bytes]) -> bytes | None:
        if points not in self._weights:
            self._weights[points] = weights(points)
        try:
            return rebuild([said[index] for index in points], self._weights[points])
        except PeerError:
            return None
