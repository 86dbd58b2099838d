"""*Pure.* A sentence for everything that may have happened: phases, stages, losses, events. `why.py` speaks so.

A `Code` brings its own (`fedless.protocol.errors`). Events that a newer or another part writes, and that have no
sentence here, are told by their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aggregator.members import Loss, Phase, Stage
from fedless.protocol.errors import Code

PHASES: Mapping[Phase, str] = {
    Phase.OPENING: "its cohort is being drawn",
    Phase.COLLECTING: "it takes reports, and has not enough yet",
    Phase.GRACE: "it has enough reports, and gives the others their grace time",
    Phase.UNMASKING: "its reports are closed; the masked sum is being opened",
    Phase.COMMITTING: "its reports are closed; the next model is being made",
    Phase.COMMITTED: "its model is committed",
    Phase.ABANDONED: "it ended without a model",
}
STAGES: Mapping[Stage, str] = {
    Stage.SELECTED: "it was woken and has not checked in",
    Stage.CHECKED_IN: "it checked in and has not announced a report",
    Stage.ANNOUNCED: "it announced its report and has not sent all of it",
    Stage.REPORTED: "its report is counted",
    Stage.LATE: "it was still at work when the round closed, and a later one may count it",
    Stage.LOST: "the round does without it",
}
LOSSES: Mapping[Loss, str] = {
    Loss.NEVER_CHECKED_IN: "It was woken and never checked in: asleep, away, or its answer was lost.",
    Loss.NEVER_REPORTED: "It checked in, and its report was not there when the round closed: too slow, or gone.",
    Loss.COHORT_ABANDONED: "It reported, but too few others of its cohort did, so its cohort's sum stayed closed.",
    Loss.TOO_LATE: "It was still at work, and no later round takes it: its model is too old, or its ticket ended.",
    Loss.SURPLUS: "The round had enough reports without it (over-selection); nothing is wrong with it.",
}
TIMES: Mapping[str, str] = {
    "wake": "from the opening to the first check-in",
    "train": "from the first check-in to the last counted report: start, download, training, upload",
    "wait": "for clients that never came, up to the end of the grace time or the deadline",
    "aggregate": "adding the reports up and applying the strategy",
    "unmask": "taking the masks off the sum, with the members' or the helper's help",
    "commit": "writing the next model down",
    "evaluate": "judging the model on the central test set",
}
EVENTS: Mapping[str, str] = {
    "run_started": "The run was started.",
    "run_waits": "The run waited: {reason}.",
    "run_paused": "The run was paused.",
    "run_resumed": "The run went on.",
    "run_finished": "The run has finished. {reason}",
    "run_stopped": "The operator stopped the run.",
    "run_failed": "The run failed: {reason}",
    "aggregator_started_again": "The aggregator was started again, {quiet_s} s after it had last written something.",
    "aggregator_restored": "The fleet was restored from a back-up: what was open was abandoned.",
    "clients_considered": "{eligible} clients could be selected; {resting} rested.",
    "cohort_selected": "{clients} clients were selected and woken.",
    "wake_failed": "The wake-up did not go out: {reason}",
    "client_checked_in": "It checked in.",
    "report_announced": "It announced its report.",
    "head_refused": "The signed head of its report was refused: {code}",
    "upload_began": "It began to send its report.",
    "report_arrived": "Its report arrived whole and was counted.",
    "report_spoiled": "Its report's bytes were not acceptable: {code}",
    "client_gave_up": "It gave up: {reason}",
    "client_refused": "It was refused: {code}",
    "invocation_measured": "It told its own figures: {outcome}, {start} start.",
    "invocation_accepted": "The platform took the invocation.",
    "invocation_ended": "The invocation ended: {outcome}. {reason}",
    "invocation_failed": "The invocation failed: {reason}",
    "invocation_given_up": "The invocation was given up: {reason}",
    "grace_ended": "The grace time was over.",
    "deadline_passed": "The deadline had come.",
    "model_committed": "The next model was committed.",
    "model_evaluated": "The model was judged on the test set.",
    "evaluation_failed": "The model could not be judged: {reason}",
    "model_promoted": "Version {version} was promoted to {channel}.",
    "model_rolled_back": "{channel} was rolled back to version {version}.",
    "announcement_failed": "The news of the model did not go out: {reason}",
    "round_stopped": "The round was ended: {reason}",
    "key_epoch_opened": "A key epoch was opened with {clients} clients (good for rounds: {slots}).",
    "keys_arrived": "It sent its keys for the key epoch.",
    "roster_made": "The keys of {members} clients are there; each was asked for its shares.",
    "shares_arrived": "It sent its shares for the key epoch.",
    "key_epoch_active": "The key epoch is ready, with {members} members.",
    "key_epoch_ended": "The key epoch ended: {reason}",
    "unmask_requested": "Members were asked to open the sum over {survivors} reports.",
    "unmask_answered": "It sent its shares for the sum.",
    "wrong_share": "It sent a share that does not fit; the sum was opened without it.",
    "helper_asked": "The helper was asked to open the sum over {reports} reports.",
    "helper_waited_for": "The helper did not answer yet: {reason}",
}
"""Fields of the event stand in braces; one that it does not have is left out."""


def said(event: str, fields: Mapping[str, Any]) -> str:
    """The sentence of an event, with codes in words."""
    template = EVENTS.get(event)
    if template is None:
        return f"{event.replace('_', ' ').capitalize()}."
    values = {key: _value(key, value) for key, value in fields.items()}
    return template.format_map(_Gaps(values)).replace(" .", ".").strip()


def loss(name: str) -> str:
    """Why a client that was lost does not count: one of ours, or a code."""
    ours = {each.value: sentence for each, sentence in LOSSES.items()}
    return ours.get(name) or f"{Code.of(name).sentence} ({name})"


def _value(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    codes = {code.value for code in Code}
    if key in {"code", "reason", "outcome"} and value in codes:
        return f"{Code.of(str(value)).sentence} ({value})"
    return str(value).rstrip(".") if key == "reason" else str(value)


class _Gaps(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""
