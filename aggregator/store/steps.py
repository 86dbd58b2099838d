"""One step of a round in the database: the round's new state, what happened, and who was refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection

from aggregator import events as e
from aggregator.members import Terms
from aggregator.round import Round
from aggregator.store import history, rounds
from fedless.protocol.errors import Code
from fedless.protocol.messages import InvocationMetrics

NAMES: dict[type, str] = {
    e.CohortSelected: "cohort_selected",
    e.ClientCheckedIn: "client_checked_in",
    e.ReportAnnounced: "report_announced",
    e.HeadRefused: "head_refused",
    e.UploadBegan: "upload_began",
    e.ReportArrived: "report_arrived",
    e.ReportSpoiled: "report_spoiled",
    e.ClientGaveUp: "client_gave_up",
    e.GraceEnded: "grace_ended",
    e.DeadlinePassed: "deadline_passed",
    e.ModelCommitted: "model_committed",
    e.RoundStopped: "round_stopped",
}
"""What events are called in a run's log."""


def open_round(connection: Connection, round_: Round, event: e.CohortSelected, now: int) -> None:
    """A new round with its cohort."""
    rounds.insert_round(connection, round_)
    _note(connection, round_, event, now)


def change_round(
    connection: Connection, round_: Round, event: e.Event, effects: Sequence[e.Effect], now: int
) -> None:
    """A round and its members after an event that changed them."""
    rounds.save(connection, round_, now)
    _note(connection, round_, event, now)
    for effect in effects:
        if isinstance(effect, e.AddReport):
            history.count(connection, effect.client_id, "reports", now)


def keep_invocation(
    connection: Connection, terms: Terms, client_id: str, value: InvocationMetrics, now: int
) -> bool:
    """A client's own figures of its invocation, kept and told; False if it is not in the round's cohort."""
    known = rounds.save_invocation(connection, client_id, value)
    if known:
        figures = {key: item for key, item in asdict(value).items() if key != "round_id"}
        history.note(
            connection,
            terms.run_id,
            "invocation_measured",
            now,
            round_id=terms.round_id,
            client_id=client_id,
            **figures,
        )
    return known


def count_refusals(
    connection: Connection,
    round_: Round,
    refusals: Sequence[e.Refuse],
    known: set[tuple[str, Code]],
    now: int,
) -> None:
    """Counts refusals by client and code; only the first of a kind in a round is an event of its own."""
    terms = round_.terms
    for refusal in refusals:
        history.count(connection, refusal.client_id, refusal.code.value, now)
        if (refusal.client_id, refusal.code) not in known:
            history.note(
                connection,
                terms.run_id,
                "client_refused",
                now,
                round_id=terms.round_id,
                client_id=refusal.client_id,
                code=refusal.code.value,
            )


def _note(connection: Connection, round_: Round, event: e.Event, now: int) -> None:
    fields: dict[str, object] = {"phase": round_.phase.value}
    match event:
        case e.CohortSelected(nonces):
            terms = round_.terms
            fields |= {"clients": len(nonces), "kind": terms.kind.name.lower(), "number": terms.number}
        case e.ReportAnnounced(_, header) if not round_.terms.is_masked:
            fields["examples"] = header.examples
        case e.ReportSpoiled(_, code) | e.HeadRefused(_, code):
            fields["code"] = code.value
        case e.ClientGaveUp(_, reason) | e.RoundStopped(reason):
            fields["reason"] = reason
        case _:
            pass
    if round_.state.reason:
        fields["reason"] = round_.state.reason
    history.note(
        connection,
        round_.terms.run_id,
        NAMES[type(event)],
        now,
        round_id=round_.terms.round_id,
        client_id=getattr(event, "client_id", ""),
        **fields,
    )
