"""A function's life: warm and cold, the queue's bound, deadlines, a new version before the old one ends, rollback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.lifecycle import (
    TRANSITIONS,
    Abandoned,
    Died,
    Effect,
    Event,
    Finished,
    Forget,
    Function,
    Installed,
    Invoked,
    Limits,
    MemoryWanted,
    Phase,
    Refuse,
    RollBack,
    Run,
    Start,
    Started,
    Stop,
    TimePassed,
)
from fedless.protocol.errors import Code, PeerError

FAR = 10**9


def installed(limits: Limits | None = None) -> Function:
    function = Function(limits or Limits(keep_warm_ms=1000))
    assert function.handle(Installed(1, "a"), 0) == []
    return function


def warm(limits: Limits | None = None) -> Function:
    """With version 1 idle since time 0."""
    function = installed(limits)
    assert function.handle(Invoked(1, FAR), 0) == [Start("a")]
    assert function.handle(Started("a"), 0) == [Run(1, "a", 1)]
    function.handle(Finished(1, failed=False), 0)
    return function


def test_cold_start_then_warm_start_then_scale_to_zero() -> None:
    function = warm()
    assert function.next_at_ms() == 1000
    assert function.handle(Invoked(2, FAR), 500) == [Run(2, "a", 1)]
    assert function.handle(Finished(2, failed=False), 600) == []
    assert function.handle(TimePassed(), 1599) == []
    assert function.handle(TimePassed(), 1600) == [Stop("a")]
    assert function.versions[0].phase is Phase.COLD
    assert function.handle(Invoked(3, FAR), 1700) == [Start("a")]


def test_servers_that_have_nothing_to_do_give_way_to_who_wants_memory() -> None:
    function = warm()
    assert function.handle(MemoryWanted(), 1) == [Stop("a")]
    assert function.handle(Invoked(2, FAR), 2) == [Start("a")]
    assert function.handle(Started("a"), 3) == [Run(2, "a", 1)]
    assert function.handle(MemoryWanted(), 4) == [], "it runs"
    assert function.handle(Finished(2, failed=False), 5) == []
    assert function.handle(MemoryWanted(), 6) == [Stop("a")]


def test_without_keep_warm_the_server_ends_with_its_invocation() -> None:
    function = installed(Limits())
    function.handle(Invoked(1, FAR), 0)
    function.handle(Started("a"), 0)
    assert function.handle(Finished(1, failed=False), 0) == [Stop("a")]


def test_queue_is_bounded() -> None:
    function = installed(Limits(concurrency=2, queue=1))
    effects = [function.handle(Invoked(number, FAR), 0) for number in range(1, 5)]
    assert effects == [[Start("a")], [], [], [Refuse(4, Code.QUEUE_FULL)]]
    assert function.handle(Started("a"), 0) == [Run(1, "a", 1), Run(2, "a", 1)]
    assert function.handle(Finished(2, failed=False), 0) == [Run(3, "a", 1)]


def test_nothing_runs_past_its_deadline() -> None:
    function = installed()
    function.handle(Invoked(1, 100), 0)
    assert function.next_at_ms() == 100
    assert function.handle(TimePassed(), 100) == [Refuse(1, Code.INSTANCE_TIMEOUT)]
    assert function.handle(Invoked(2, 100), 101) == [Refuse(2, Code.INSTANCE_TIMEOUT)]


def test_a_caller_who_left_is_not_served() -> None:
    function = installed()
    function.handle(Invoked(1, FAR), 0)
    function.handle(Abandoned(1), 0)
    assert function.handle(Started("a"), 0) == []


def test_no_version_no_service() -> None:
    assert Function(Limits()).handle(Invoked(1, FAR), 0) == [Refuse(1, Code.WRONG_STATE)]


def test_an_older_version_is_refused() -> None:
    function = installed()
    function.handle(Installed(3, "c"), 0)
    for version in (2, 3):
        with pytest.raises(PeerError) as caught:
            function.handle(Installed(version, "b"), 0)
        assert caught.value.code is Code.BUNDLE_OLDER


def test_a_new_version_starts_before_the_old_one_is_retired() -> None:
    function = warm()
    assert function.handle(Installed(2, "b"), 0) == [Start("b")]
    assert function.handle(Invoked(2, FAR), 1) == [Run(2, "a", 1)]
    assert function.handle(Started("b"), 2) == []
    assert [version.phase for version in function.versions] == [Phase.IDLE, Phase.DRAINING]
    assert function.handle(Finished(2, failed=False), 3) == [Stop("a")]
    assert function.handle(Invoked(3, FAR), 4) == [Run(3, "b", 2)]
    assert function.versions[1].phase is Phase.RETIRED


def test_only_the_newest_two_are_kept() -> None:
    function = installed()
    function.handle(Installed(2, "b"), 0)
    assert function.handle(Installed(3, "c"), 0) == [Forget("a")]
    assert [version.digest for version in function.versions] == ["c", "b"]


def test_a_version_that_fails_its_first_invocations_is_rolled_back() -> None:
    function = warm()
    function.handle(Installed(2, "b"), 0)
    function.handle(Started("b"), 0)
    for number in (2, 3):
        assert function.handle(Invoked(number, FAR), 0) == [Run(number, "b", 2)]
        assert function.handle(Finished(number, failed=True), 0) == []
    function.handle(Invoked(4, FAR), 0)
    assert function.handle(Finished(4, failed=True), 0) == [RollBack("b", "a"), Stop("b")]
    assert function.handle(Invoked(5, FAR), 0) == [Start("a")]
    assert function.handle(Started("a"), 0) == [Run(5, "a", 1)]


def test_a_version_that_has_worked_is_not_rolled_back() -> None:
    function = warm()
    function.handle(Installed(2, "b"), 0)
    function.handle(Started("b"), 0)
    for number in range(2, 9):
        function.handle(Invoked(number, FAR), 0)
        effects = function.handle(Finished(number, failed=number > 2), 0)
        assert not any(isinstance(effect, RollBack) for effect in effects)


def test_a_version_that_does_not_start_is_rolled_back_and_its_callers_are_served() -> None:
    function = warm(Limits(keep_warm_ms=1000, trials=1))
    function.handle(Installed(2, "b"), 0)
    function.handle(Invoked(2, FAR), 0)
    assert function.handle(Died("b"), 0) == [RollBack("b", "a")]
    assert function.handle(Finished(2, failed=False), 0) == []
    assert function.handle(Invoked(3, FAR), 0) == [Run(3, "a", 1)]


def test_the_only_version_failing_to_start_answers_and_does_not_spin() -> None:
    function = installed()
    function.handle(Invoked(1, FAR), 0)
    assert function.handle(Died("a"), 0) == [Refuse(1, Code.INSTANCE_FAILED)]
    assert function.handle(Invoked(2, FAR), 0) == [Start("a")]


class Device(RuleBasedStateMachine):
    """A driver that does what it is told, in any order that is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.function = Function(Limits(concurrency=2, queue=2, keep_warm_ms=50, trials=2))
        self.starting: set[str] = set()
        self.servers: set[str] = set()
        self.running: dict[int, str] = {}
        self.asked = 0
        self.answered: list[int] = []
        self.open: set[int] = set()
        self.newest = 0

    def feed(self, event: Event) -> None:
        for effect in self.function.handle(event, self.now):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case Start():
                assert effect.digest not in self.servers
                self.starting.add(effect.digest)
            case Run():
                assert effect.digest in self.servers, "an invocation runs on a server that is ready"
                assert effect.invocation in self.open
                assert len(self.running) < 2
                self.running[effect.invocation] = effect.digest
            case Refuse():
                assert effect.invocation not in self.running
                self.open.remove(effect.invocation)
            case Stop() | Forget():
                self.servers.discard(effect.digest)
            case RollBack():
                assert effect.digest != effect.to

    @rule(more=st.integers(0, 100))
    def wait(self, more: int) -> None:
        self.now += more
        self.feed(TimePassed())

    @rule()
    def want_memory(self) -> None:
        self.feed(MemoryWanted())

    @rule()
    def install(self) -> None:
        self.newest += 1
        self.feed(Installed(self.newest, f"v{self.newest}"))

    @rule(patience=st.integers(0, 200))
    def invoke(self, patience: int) -> None:
        self.asked += 1
        self.open.add(self.asked)
        self.feed(Invoked(self.asked, self.now + patience))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), well=st.booleans())
    def start(self, data: st.DataObject, well: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(digest)
        if well:
            self.servers.add(digest)
        self.feed(Started(digest) if well else Died(digest))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failed=st.booleans())
    def finish(self, data: st.DataObject, failed: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[number]
        self.open.remove(number)
        self.feed(Finished(number, failed))

    @invariant()
    def holds(self) -> None:
        function = self.function
        assert {item.invocation for item in function.waiting} | set(self.running) == self.open
        assert len(function.waiting) <= 4
        idle_or_busy = {Phase.IDLE, Phase.BUSY, Phase.DRAINING}
        assert {v.digest for v in function.versions if v.phase in idle_or_busy} <= self.servers
        assert len([v for v in function.versions if v.phase is not Phase.FAILED]) <= 2 + len(self.running)
        assert all(v.running == list(self.running.values()).count(v.digest) for v in function.versions)


Device.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase


def test_the_drawing_in_the_docs_is_current() -> None:
    text = (Path(__file__).parents[3] / "docs" / "edge.md").read_text()
    drawn = text.partition("lifecycle.py: begin -->")[2].partition("<!-- end -->")[0]
    arrows = {line.strip() for line in drawn.splitlines() if "-->" in line and "[*]" not in line}
    assert arrows == {f"{old} --> {new}: {step}" for (old, step), new in TRANSITIONS.items()}
