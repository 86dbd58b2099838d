"""The helper that this device pins, and whom it names as its successor: only by its own signed word.

The aggregator hands the helper's lists out and cannot make one. A list that the pinned helper has not signed changes
nothing, and keeps nothing else back: the rest of an answer is the fleet's business, this is the helper's. Called by
`enroll` and `renew`. A device that pins no signing key follows nobody; its owner changes the helper then.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.log import say
from fedless.protocol.errors import PeerError
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.succession import follow
from fedless.protocol.trust import TrustKind, TrustList

KIND = TrustKind.HELPER


def followed(policy: Policy, fleet: str, lists: Sequence[TrustList], numbers: dict[str, int]) -> Policy:
    """The policy after these lists (those of other kinds are passed over); `numbers` is kept up."""
    if not policy.helpers:
        return policy
    try:
        helpers, number = follow(fleet, KIND, policy.helpers, numbers.get(KIND.value, 0), lists)
    except PeerError as error:
        say("participant", "helper_not_followed", code=error.code.value, why=error.detail)
        return policy
    if number:
        numbers[KIND.value] = number
    return policy if helpers == policy.helpers else policy.after(helpers)


def joined(policy: Policy, fleet: str, lists: Sequence[TrustList], numbers: dict[str, int]) -> Policy:
    """A new device's policy after the newest list: what the helper that it pins has named itself.

    Of a list that another one signed, and that has the pinned one in it, only the number counts.
    """
    mine = [each for each in lists if each.kind is KIND]
    numbers.pop(KIND.value, None)
    after = followed(policy, fleet, mine, numbers)
    if KIND.value not in numbers and mine and policy.helpers[:1] and policy.helpers[0] in mine[-1].members:
        numbers[KIND.value] = mine[-1].number
    return after
