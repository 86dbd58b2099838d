"""Which models and blobs must stay, and which versions may go. Functions on a connection, part of a larger step.

A version that may go is marked first (`models.erased_at_ms`, its strategy's state is forgotten); its blob is erased an
hour later, by whoever compares what is stored with what is needed. So a kill between the two leaves a blob too many,
never one too few, and an export that has begun ends.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, delete, func, select, update

from aggregator import judgement
from aggregator.judgement import Aim, Scored
from aggregator.members import ENDED
from aggregator.store import channels, orders
from aggregator.store import runs as store
from aggregator.store.schema import model_state, models, rounds, runs
from aggregator.tasks import parse
from fedless.protocol.errors import LocalError
from fedless.protocol.messages import DIGEST_BYTES

EXPORT_MS = 3_600_000
"""How long the blob of a version that was given up still stays, for exports that have begun."""


def needed(connection: Connection, now_ms: int) -> set[bytes]:
    """Digests of all blobs that must stay: of bundles, test sets, models that were kept, and strategies' state."""
    kept = (models.c.erased_at_ms == 0) | (models.c.erased_at_ms > now_ms - EXPORT_MS)
    found = {row.digest for row in connection.execute(select(models.c.digest).where(kept))}
    found |= {row.digest for row in connection.execute(select(model_state.c.digest))}
    for row in connection.execute(select(runs.c.bundle_digest, runs.c.test_set_digest)):
        found |= {row.bundle_digest, row.test_set_digest}
    for column in (orders.bundles.c.digest, orders.orders.c.bundle_digest):
        found |= set(connection.scalars(select(column)))
    return found - {b"", bytes(DIGEST_BYTES)}


def give_up_models(connection: Connection, keep: int, now_ms: int) -> int:
    """Marks the versions that may go, `keep` of each run being the newest that stay; how many were marked."""
    given_up = 0
    for row in connection.execute(select(runs.c.run_id)).all():
        mine = (models.c.run_id == row.run_id) & (models.c.erased_at_ms == 0)
        query = select(models.c.version).where(mine).order_by(models.c.version.desc()).offset(max(keep, 1))
        old = set(connection.scalars(query))
        if old:
            old -= {version for must in MUST_STAY for version in must(connection, row.run_id)}
        for version in old:
            here = mine & (models.c.version == version)
            connection.execute(update(models).where(here).values(erased_at_ms=now_ms))
        given_up += len(old)
    return given_up


def forget_state(connection: Connection) -> int:
    """Forgets the strategies' state of versions that no round will start from; how many vectors that were."""
    newest = select(models.c.run_id, func.max(models.c.version).label("version")).group_by(models.c.run_id)
    stay = {(row.run_id, row.version) for row in connection.execute(newest)}
    unended = rounds.c.phase.not_in([phase.value for phase in ENDED])
    bases = select(rounds.c.run_id, rounds.c.model_version).where(unended)
    stay |= {(row.run_id, row.model_version) for row in connection.execute(bases)}
    all_of_them = select(model_state.c.run_id, model_state.c.version).distinct()
    forgotten = 0
    for row in connection.execute(all_of_them).all():
        if (row.run_id, row.version) not in stay:
            mine = (model_state.c.run_id == row.run_id) & (model_state.c.version == row.version)
            forgotten += connection.execute(delete(model_state).where(mine)).rowcount
    return forgotten


# -- which versions of a run must stay, however old


def initial(_connection: Connection, _run_id: str) -> set[int]:
    """What it began from."""
    return {0}


def bases_of_open_rounds(connection: Connection, run_id: str) -> set[int]:
    """What the clients of open rounds train or evaluate."""
    unended = rounds.c.phase.not_in([phase.value for phase in ENDED])
    query = select(rounds.c.model_version).where(rounds.c.run_id == run_id, unended)
    return set(connection.scalars(query))


def best(connection: Connection, run_id: str) -> set[int]:
    """The best one, as its task says what that is."""
    try:
        aim = parse(store.load(connection, run_id).settings).aim()
    except LocalError:  # a task of another program version
        aim = Aim()
    scored = [Scored(version, metrics) for version, metrics in store.scores(connection, run_id)]
    top = judgement.best(scored, aim)
    return set() if top is None else {top[0]}


def promoted(connection: Connection, run_id: str) -> set[int]:
    """All that a channel serves or served: it may be rolled back to any of them."""
    mine = channels.promotions.c.run_id == run_id
    return set(connection.scalars(select(channels.promotions.c.version).where(mine)))


MUST_STAY: tuple[Callable[[Connection, str], set[int]], ...] = (
    initial,
    bases_of_open_rounds,
    best,
    promoted,
)
"""Whoever needs a version of a run to stay adds a function here."""
