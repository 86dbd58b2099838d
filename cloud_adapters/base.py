"""The calling side: what every adapter does, and the little that each one adds.

An `Invoker` brings a signed ticket and a one-use claim to one registered function. The aggregator makes it from the
client's record and calls `invoke`; an adapter implements `settings` and `call`. Rules: what cannot fit is refused
before the platform is asked; what may go away (429, 502, 503, no connection) is repeated with jitter until the
deadline, each time with a fresh claim; everything else is an error that names adapter, client, what the platform said
and what to do. An invocation that is given up may still run: what counts is the report, which travels over gRPC.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import stamina

from fedless.protocol.cloud import ANSWER_BYTES_MAX, Answer, Payload, answer_from_values, payload_to_json
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.tables import Table

Claims = Callable[[], Awaitable[str]]
"""A fresh one-use claim for each attempt: an attempt that was cut off may have used its own."""
REPEATED = frozenset({Code.PLATFORM_BUSY, Code.PLATFORM_UNREACHABLE})
FUNCTION_KEYS = frozenset({"data", "threads", "modes", "states"})
"""Settings of the called side, which travel in its deployment."""
RUNTIME_MB = 110
"""What the called side needs beside the bundle's own memory: gRPC, X.509, Python (docs/adapters.md)."""
TEXT = re.compile(r"[^\x00-\x1f]{1,1024}")
MAYBE = re.compile(r"[^\x00-\x1f]{0,1024}")
URL = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(/[^\s?#]*)?")
_SECRETS = re.compile(r"[A-Za-z0-9+/=_~-]{20,}")
_SAID_MAX = 160
_FIRST_WAIT_S, _LONGEST_WAIT_S, _JITTER_S = 0.2, 10.0, 1.0


@dataclass(frozen=True)
class Limit:
    """One of a platform's limits, and where it is written."""

    value: int
    source: str


@dataclass(frozen=True)
class Limits:
    """A platform's limits for one function; `concurrency` 0: not limited by the platform.

    `exchange_bytes`: of a body, and of its answer, in a synchronous invocation; None: as `payload_bytes`.
    """

    time_ms: Limit
    payload_bytes: Limit
    memory_mb: Limit
    concurrency: Limit
    exchange_bytes: Limit | None = None


@dataclass(frozen=True)
class Needs:
    """What a task asks of a function: the bundle's memory, and how long it took here before (0: never seen)."""

    memory_mb: int = 0
    time_ms: int = 0


@dataclass(frozen=True)
class Figures:
    """What an invocation took. `source`: whose figures: `platform`, `function` or "" (none known)."""

    source: str = ""
    billed_ms: float = 0.0
    run_ms: float = 0.0
    init_ms: float = 0.0
    wait_ms: float = 0.0
    memory_mb: int = 0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Receipt:
    """What became of an invocation. `answer` None: the platform accepted it and tells no more."""

    answer: Answer | None = None
    figures: Figures = field(default_factory=Figures)
    attempts: int = 1


@dataclass(frozen=True)
class Size:
    """How a function is deployed, as the operator says: its memory and its time limit."""

    memory_mb: int
    timeout_ms: int


class Invoker(ABC):
    """Invokes one function. `settings` are those of its registration; raises `LocalError(CONFIG_INVALID)`.

    `trouble` is what the latest attempt met, while the next one is waited for.
    """

    platform: ClassVar[str]
    limits: ClassVar[Limits]

    def __init__(self, client_id: str, settings: Mapping[str, Any]) -> None:
        self.client_id = client_id
        self.trouble: PeerError | None = None
        self.answer_bytes_max = ANSWER_BYTES_MAX
        values = {key: value for key, value in settings.items() if key not in FUNCTION_KEYS}
        table = Table.root(values)
        most = self.limits
        self.size = Size(
            table.integer("memory_mb", 64, most.memory_mb.value),
            1000 * table.integer("timeout_s", 1, most.time_ms.value // 1000),
        )
        self.settings(table)
        if complaints := table.close():
            raise LocalError(
                Code.CONFIG_INVALID,
                f"{self.platform}, client {client_id}: {'; '.join(complaints)}.",
                fix="Every setting is described in docs/adapters.md.",
            )

    @abstractmethod
    def settings(self, table: Table) -> None:
        """Take this platform's own settings; a mistake becomes a complaint of the table."""

    @abstractmethod
    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """One attempt. Raises `PeerError` (`error`), with a code of `REPEATED` if another attempt may do."""

    async def close(self) -> None:  # noqa: B027 - most adapters have nothing to close
        """Let go of connections."""

    def check(self, needs: Needs, body_bytes: int) -> None:
        """Refuse what cannot fit, before the platform is asked. Raises `PeerError(FUNCTION_LIMIT)`."""
        payload = self.limits.payload_bytes
        if body_bytes > payload.value:
            raise self.error(
                Code.FUNCTION_LIMIT, f"{body_bytes} bytes; it takes {payload.value} ({payload.source})"
            )
        if needs.memory_mb and needs.memory_mb + RUNTIME_MB > self.size.memory_mb:
            raise self.error(
                Code.FUNCTION_LIMIT,
                f"The bundle needs {needs.memory_mb} MB and the runtime {RUNTIME_MB} MB; "
                f"the function has {self.size.memory_mb} MB, of at most {self.limits.memory_mb.value}",
                fix="Deploy it with more memory, and register the new size.",
            )
        if needs.time_ms > self.size.timeout_ms:
            raise self.error(
                Code.FUNCTION_LIMIT,
                f"The task took {needs.time_ms / 1000:.0f} s here before; the function may run "
                f"{self.size.timeout_ms / 1000:.0f} s, of at most {self.limits.time_ms.value / 1000:.0f}",
                fix="Raise its time limit, or give it less to do (local_epochs, max_steps).",
            )

    async def invoke(
        self,
        ticket: bytes,
        claim: Claims,
        deadline_ms: int,
        needs: Needs | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> Receipt:
        """Bring a signed ticket (wire bytes) to the function, before the deadline (Unix ms).

        Returns when the platform has said what it will say. Raises `PeerError`.
        """
        attempts, self.trouble = 0, None
        self.check(needs or Needs(), 0)  # no claim for what cannot be
        left_s = (deadline_ms - clock()) / 1000
        retrying = stamina.retry_context(
            on=self._pause, attempts=None, timeout=max(left_s, 0.001),
            wait_initial=_FIRST_WAIT_S, wait_max=_LONGEST_WAIT_S, wait_jitter=_JITTER_S,
        )  # fmt: skip
        async for attempt in retrying:
            with attempt:
                attempts += 1
                left_s = (deadline_ms - clock()) / 1000
                if left_s <= 0:
                    raise self._late()
                body = payload_to_json(Payload(ticket, await claim()))
                self.check(needs or Needs(), len(body))
                receipt = await self.call(body, min(left_s, self.size.timeout_ms / 1000 + 60))
        return Receipt(receipt.answer, receipt.figures, attempts)

    async def exchange(self, body: bytes, timeout_ms: int) -> Answer:
        """Ask a helper once: its answer, of up to `exchange_limit` bytes. Whoever calls decides about asking again.

        Raises `PeerError`; PLATFORM_ANSWER where the platform accepts the call and brings nothing back.
        """
        limit = self.exchange_limit
        self.answer_bytes_max = limit.value
        if len(body) > limit.value:
            raise self.error(
                Code.FUNCTION_LIMIT, f"{len(body)} bytes; it takes {limit.value} ({limit.source})",
                fix="Ask fewer clients (cohort.size), or run the helper as a service.",
            )  # fmt: skip
        receipt = await self.call(body, min(timeout_ms, self.size.timeout_ms + 60_000) / 1000)
        if receipt.answer is None:
            raise self.error(
                Code.PLATFORM_ANSWER, "It accepted the call and answers nothing",
                fix="A helper is invoked synchronously: choose that mode in its settings.",
            )  # fmt: skip
        return receipt.answer

    @property
    def exchange_limit(self) -> Limit:
        """How large a body, and its answer, may be in a synchronous invocation."""
        return self.limits.exchange_bytes or self.limits.payload_bytes

    def _late(self) -> PeerError:
        """The deadline has come: what stood in the way."""
        return self.trouble or self.error(Code.PLATFORM_TIMEOUT, "The deadline came first")

    def _pause(self, error: Exception) -> bool | float:
        """Whether, and after how many seconds, to try again."""
        if not isinstance(error, PeerError):
            return False
        self.trouble = error
        if error.code not in REPEATED:
            return False
        return error.retry_after_ms / 1000 if error.retry_after_ms else True

    def answered(self, values: object) -> Answer:
        """The function's own answer in JSON values. Raises `PeerError(PLATFORM_ANSWER)`."""
        try:
            return answer_from_values(values)
        except PeerError as error:
            raise self.error(error.code, error.detail.rstrip("."), fix=error.fix) from error

    def error(self, code: Code, said: str, fix: str = "", retry_after_ms: int | None = None) -> PeerError:
        """A refusal that names this adapter and its client; `said` must hold no secret (`scrubbed`)."""
        detail = f"{self.platform}, client {self.client_id}: {said}."
        return PeerError(code, detail, fix=fix, retry_after_ms=retry_after_ms)


def scrubbed(text: str) -> str:
    """What a platform said, short, on one line, and without anything that could be a key, a token or a claim."""
    return " ".join(_SECRETS.sub("...", text[:2000]).split())[:_SAID_MAX]


def secret(path: str) -> str:
    """A secret from the file that the settings name. Raises `LocalError(STATE_MISSING)`; it never tells the content."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(
            Code.STATE_MISSING,
            f"Expected a secret in {path} ({type(error).__name__}).",
            fix="Check the path.",
        ) from error
