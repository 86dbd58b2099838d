"""*Pure.* What happened in a run and why: from the events and rows of the store to sentences for people.

`fedless why RUN [ROUND] [CLIENT]` and the dashboard show it. Nothing here is remembered beside the store: after a
restart, or years later, the same rows give the same story.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.members import ENDED, Loss, Phase, Stage
from aggregator.sentences import PHASES, STAGES, TIMES, loss, said

SLOWEST = 5
"""Clients that a round's story names as its slowest."""
NAMED = 8
TIMES_WORDS = {1: "once", 2: "twice"}
SET_UP_ENDS = ("key_epoch_active", "key_epoch_ended")
CLOSERS = (
    "report_arrived",
    "grace_ended",
    "deadline_passed",
    "client_gave_up",
    "report_spoiled",
    "round_stopped",
)


@dataclass(frozen=True)
class Happening:
    """One event of the run's log."""

    at_ms: int
    event: str
    round_id: int = 0
    client_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One client's part in a round; times are Unix ms, 0: never. `timings_ms`: what it told of itself."""

    client_id: str
    stage: Stage
    checked_in_at_ms: int = 0
    settled_at_ms: int = 0
    loss: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One training round with its cohort."""

    round_id: int
    number: int
    phase: Phase
    reason: str
    mode: str
    goal: int
    minimum: int
    opened_at_ms: int
    ended_at_ms: int
    deadline_at_ms: int
    phases_ms: Mapping[str, float]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Whole:
    """A run: its state and reason, and its training rounds in order; `judging_ms` went to evaluations on devices."""

    run_id: str
    state: str
    reason: str
    started_at_ms: int
    ended_at_ms: int
    passes: Sequence[Pass]
    judging_ms: int = 0


@dataclass(frozen=True)
class Stretch:
    """A part of a round's time: what it was spent on, ms, and whom it waited for (the critical path)."""

    name: str
    ms: float
    on: str
    meaning: str


@dataclass(frozen=True)
class Story:
    """The answer: sentences, the stretches of the time, and a time line (ms from the opening, what, who)."""

    title: str
    lines: list[str] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    timeline: list[tuple[float, str, str]] = field(default_factory=list)


# -- a run


def of_run(run: Whole, happenings: Sequence[Happening], now_ms: int) -> Story:
    """Why the run took as long as it did, and why it is where it is."""
    end = run.ended_at_ms or now_ms
    took, rounds = end - run.started_at_ms, [each for each in run.passes if each.ended_at_ms]
    story = Story(f"Run {run.run_id} is {run.state}{': ' + run.reason if run.reason else ''}")
    in_rounds = sum(each.ended_at_ms - each.opened_at_ms for each in rounds)
    abandoned = [each for each in rounds if each.phase is Phase.ABANDONED]
    story.lines.append(
        f"It took {seconds(took)}: {len(rounds)} rounds of {seconds(in_rounds)} in all, "
        f"{seconds(max(0, took - in_rounds))} between them{_between(run, happenings, end)}."
    )
    for each in abandoned[:NAMED]:
        story.lines.append(f"Round {each.number} was abandoned: {each.reason}.")
    if rounds:
        longest = max(rounds, key=lambda each: each.ended_at_ms - each.opened_at_ms)
        story.lines.append(
            f"The longest round was {longest.number}: {seconds(longest.ended_at_ms - longest.opened_at_ms)}. "
            f"{_closing(longest, happenings)}"
        )
    story.lines.extend(_lost(run.passes))
    story.lines.extend(_evenness(run.passes))
    for name, ms in _sum_phases(rounds).items():
        story.stretches.append(Stretch(name, ms, "", TIMES.get(name, name)))
    for event in happenings:
        if not event.client_id and event.event.startswith(
            ("run_", "key_epoch_", "aggregator_", "evaluation_")
        ):
            story.timeline.append((event.at_ms - run.started_at_ms, said(event.event, event.fields), ""))
    return story


def _between(run: Whole, happenings: Sequence[Happening], end_ms: int) -> str:
    """What the time between training rounds went to, as far as it is known."""
    known = {
        "evaluations on devices": run.judging_ms,
        "set-ups of key epochs": _set_ups_ms(happenings, end_ms),
    }
    told = ", ".join(f"{name} {seconds(ms)}" for name, ms in known.items() if ms)
    return f" ({told})" if told else ""


def _set_ups_ms(happenings: Sequence[Happening], end_ms: int) -> int:
    """For how long at least one key epoch was being set up."""
    begun: dict[int, int] = {}
    total, since = 0, 0
    for each in happenings:
        if each.event == "key_epoch_opened":
            since = since if begun else each.at_ms
            begun[each.round_id] = each.at_ms
        elif each.event in SET_UP_ENDS and begun.pop(each.round_id, None) is not None and not begun:
            total += each.at_ms - since
    return total + (end_ms - since if begun else 0)


def _evenness(passes: Sequence[Pass]) -> Iterator[str]:
    """How evenly the counted reports came from those who were asked: Jain's index, 1 if all had as many (Jain 1984)."""
    counts = dict.fromkeys((part.client_id for each in passes for part in each.parts), 0)
    for each in passes:
        for part in each.parts:
            counts[part.client_id] += part.stage is Stage.REPORTED
    squares = sum(count * count for count in counts.values())
    if len(counts) > 1 and squares:
        index = sum(counts.values()) ** 2 / (len(counts) * squares)
        least, most = min(counts.values()), max(counts.values())
        yield (
            f"{len(counts)} clients were asked, and each was counted {least} to {most} times "
            f"(evenness {index:.2f} of 1, Jain's index)."
        )


def _sum_phases(rounds: Sequence[Pass]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in rounds:
        for name, ms in each.phases_ms.items():
            total[name] = total.get(name, 0.0) + ms
    return dict(sorted(total.items(), key=lambda item: item[1], reverse=True))


def _lost(passes: Sequence[Pass]) -> Iterator[str]:
    """Which ways of losing clients there were, over all rounds, the commonest first."""
    lost = Counter(part.loss for each in passes for part in each.parts if part.stage is Stage.LOST)
    for name, times in lost.most_common():
        who = Counter(
            part.client_id
            for each in passes
            for part in each.parts
            if part.stage is Stage.LOST and part.loss == name
        )
        most, count = who.most_common(1)[0]
        often = (
            f", {count} of them {most}"
            if len(who) > 1 and count > 1
            else f": {most}"
            if len(who) == 1
            else ""
        )
        yield f"Lost {TIMES_WORDS.get(times, f'{times} times')}{often}. {loss(name)}"


# -- a round


def of_round(pass_: Pass, happenings: Sequence[Happening], now_ms: int) -> Story:
    """Why this round took as long as it did: phases, who it waited for, who was lost."""
    end = pass_.ended_at_ms or now_ms
    took = end - pass_.opened_at_ms
    reported = [part for part in pass_.parts if part.stage is Stage.REPORTED]
    story = Story(f"Round {pass_.number} ({pass_.mode}): {PHASES[pass_.phase]}")
    if pass_.reason:
        story.lines.append(f"Why: {pass_.reason}.")
    story.lines.append(
        f"{seconds(took)}; {len(reported)} reports of {len(pass_.parts)} clients "
        f"({pass_.goal} wanted, {pass_.minimum} enough)."
    )
    closing = _closing(pass_, happenings)
    if closing:
        story.lines.append(closing)
    story.lines.extend(_slowest(reported, pass_))
    story.lines.extend(_lost([pass_]))
    story.stretches.extend(_path(pass_, happenings))
    for each in happenings:
        meanwhile = each.event.startswith("aggregator_") and pass_.opened_at_ms <= each.at_ms <= end
        if meanwhile or (each.round_id == pass_.round_id and not each.client_id):
            story.timeline.append((each.at_ms - pass_.opened_at_ms, said(each.event, each.fields), ""))
    return story


def _closer(pass_: Pass, happenings: Sequence[Happening]) -> Happening | None:
    """The event with which the round's reports were closed."""
    after = {Phase.UNMASKING.value, Phase.COMMITTING.value, Phase.ABANDONED.value}
    return next(
        (
            each
            for each in happenings
            if each.round_id == pass_.round_id and each.event in CLOSERS and each.fields.get("phase") in after
        ),
        None,
    )


def _closing(pass_: Pass, happenings: Sequence[Happening]) -> str:
    """With what the round's reports were closed, and whom it had waited for."""
    closer = _closer(pass_, happenings)
    if closer is None:
        return ""
    after = seconds(closer.at_ms - pass_.opened_at_ms)
    if closer.event == "report_arrived":
        return f"It closed after {after} with the report of {closer.client_id}, the last that it needed."
    missing = [
        part.client_id for part in pass_.parts if part.stage is Stage.LOST and part.loss != Loss.SURPLUS
    ]
    whom = f"; it had waited for {_names(missing)}" if missing else ""
    if closer.event == "grace_ended":
        return f"It closed after {after}, when the grace time was over{whom}."
    if closer.event == "deadline_passed":
        return f"It closed after {after}, at its deadline{whom}."
    if closer.client_id:
        return (
            f"It closed after {after}, when {closer.client_id} was lost and nobody else was left to wait for."
        )
    return f"It closed after {after}: {said(closer.event, closer.fields)}"


def _path(pass_: Pass, happenings: Sequence[Happening]) -> Iterator[Stretch]:
    """The critical path: what each moment of the round was spent on, and on whom."""
    closer = _closer(pass_, happenings)
    reported = [part for part in pass_.parts if part.stage is Stage.REPORTED]
    if reported:
        last = max(reported, key=lambda part: part.settled_at_ms)
        yield Stretch(
            "wake",
            last.checked_in_at_ms - pass_.opened_at_ms,
            last.client_id,
            "from its wake-up to its check-in",
        )
        yield Stretch("train", last.settled_at_ms - last.checked_in_at_ms, last.client_id, _told(last))
        if closer is not None and closer.at_ms > last.settled_at_ms:
            missing = [part.client_id for part in pass_.parts if part.stage is Stage.LOST]
            yield Stretch("wait", closer.at_ms - last.settled_at_ms, _names(missing), TIMES["wait"])
    elif closer is not None:
        yield Stretch(
            "wait",
            closer.at_ms - pass_.opened_at_ms,
            _names([p.client_id for p in pass_.parts]),
            TIMES["wait"],
        )
    for name in ("aggregate", "unmask", "commit", "evaluate"):
        if name in pass_.phases_ms:
            yield Stretch(name, pass_.phases_ms[name], "", TIMES[name])


def _slowest(reported: Sequence[Part], pass_: Pass) -> Iterator[str]:
    ordered = sorted(reported, key=lambda part: part.settled_at_ms, reverse=True)
    if len(ordered) > 1:
        first = min(part.settled_at_ms for part in reported) - pass_.opened_at_ms
        slow = ", ".join(
            f"{p.client_id} {seconds(p.settled_at_ms - pass_.opened_at_ms)}" for p in ordered[:SLOWEST]
        )
        yield f"The first report came after {seconds(first)}; the slowest: {slow}."


# -- a client


def of_client(
    client_id: str, pass_: Pass, happenings: Sequence[Happening], present: str, now_ms: int
) -> Story:
    """Why this client trained, was skipped, refused or dropped in this round. `present`: its state in the fleet."""
    mine = [each for each in happenings if each.round_id == pass_.round_id and each.client_id == client_id]
    part = next((part for part in pass_.parts if part.client_id == client_id), None)
    story = Story(f"{client_id} in round {pass_.number}")
    if part is None:
        story.lines.append(_skipped(client_id, pass_, happenings, present))
    else:
        story.lines.extend(_took_part(part, pass_, now_ms))
    for each in mine:
        story.timeline.append((each.at_ms - pass_.opened_at_ms, said(each.event, each.fields), ""))
    return story


def _took_part(part: Part, pass_: Pass, now_ms: int) -> Iterator[str]:
    if part.stage is Stage.LOST:
        yield f"It was dropped: {loss(part.loss)}"
    elif part.stage is Stage.REPORTED:
        yield f"It trained, and {STAGES[part.stage]}."
    else:
        verb = "The round closed while" if pass_.phase in ENDED else "So far"
        yield f"{verb}: {STAGES[part.stage]}."
    if part.checked_in_at_ms:
        wake = seconds(part.checked_in_at_ms - pass_.opened_at_ms)
        until = part.settled_at_ms or now_ms
        worked = seconds(until - part.checked_in_at_ms)
        yield f"It checked in {wake} after the opening; from there it took {worked}: {_told(part)}."
    elif not part.settled_at_ms:
        yield f"It has until the deadline, in {seconds(max(0, pass_.deadline_at_ms - now_ms))}."


def _skipped(client_id: str, pass_: Pass, happenings: Sequence[Happening], present: str) -> str:
    considered = next(
        (
            each
            for each in reversed(happenings)
            if each.event == "clients_considered" and each.fields.get("number") == pass_.number
        ),
        None,
    )
    if considered is None:
        return f"It was not selected. {present}"
    resting = considered.fields.get("who_rests", {}).get(client_id)
    if resting:
        until, reason = resting
        left = seconds(max(0, until - considered.at_ms))
        return f'It was skipped: it had said "not before {left} from then, because {reason}".'
    backed_off = considered.fields.get("who_backs_off", {}).get(client_id)
    if backed_off:
        rounds = "1 round" if backed_off == 1 else f"{backed_off} rounds"
        return f"It was skipped: it missed rounds in a row, so after failures it rests for {rounds} more."
    eligible, chosen = considered.fields.get("eligible", 0), len(pass_.parts)
    how = considered.fields.get("selection", "")
    return (
        f"It was not selected: {chosen} of {eligible} eligible clients were drawn ({how}), and it was not among them. "
        f"{present}"
    )


# -- words


def _told(part: Part) -> str:
    """Where the time went, as the client told it: the longest parts first."""
    parts = {
        name: ms for name, ms in part.timings_ms.items() if name not in {"total", "first_step"} and ms >= 1
    }
    if not parts:
        return "it told no parts of it"
    ordered = sorted(parts.items(), key=lambda item: item[1], reverse=True)[:SLOWEST]
    return ", ".join(f"{name} {seconds(ms)}" for name, ms in ordered)


def _names(clients: Sequence[str]) -> str:
    shown = ", ".join(sorted(clients)[:NAMED])
    return shown if len(clients) <= NAMED else f"{shown} and {len(clients) - NAMED} more"


def seconds(ms: float) -> str:
    """A duration for people."""
    if ms < 1000:  # noqa: PLR2004 - a second
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 600_000 else f"{ms / 60_000:.0f} min"  # noqa: PLR2004 - ten minutes
