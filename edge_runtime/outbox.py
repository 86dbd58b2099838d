"""Reports that are not delivered yet: `DIR/outbox/<nonce>.report` with a row in the journal, and their delivery.

The participant stores a report completely (file synced, then the row) before its first byte is sent, and sends only
those bytes for that round, however often the power fails. A report leaves when the aggregator has accepted it or has
refused it by name. Disk use is bounded.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_runtime.disk import write_whole
from edge_runtime.entries import StoredReport
from edge_runtime.journal import REPORTED, Journal
from edge_runtime.link import Link, may_pass, patiently
from edge_runtime.log import say
from fedless.protocol.errors import Code, FedlessError, LocalError
from fedless.protocol.messages import CHUNK_BYTES, ReportHeader, Ticket

LATE_MS = 7 * 24 * 3_600_000
"""An unreachable aggregator is asked about a late report for this long after its deadline; then it is dropped."""

_REST_S = 2.0


class Outbox:
    """`DIR/outbox/` and its rows, with at most `limit_bytes` of payload."""

    def __init__(self, folder: Path, journal: Journal, limit_bytes: int) -> None:
        self.folder = folder
        self._journal = journal
        self._limit_bytes = limit_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def store(
        self,
        ticket: Ticket,
        header: ReportHeader,
        payload: bytes | bytearray | memoryview,
        now_ms: int,
        masks: tuple[bytes, bytes] | None = None,
    ) -> StoredReport:
        """Keep a finished report, and beside a masked one the state that masked it.

        Raises `LocalError(DISK_FULL)` if it does not fit even without late ones.
        """
        self._make_room(len(payload), now_ms)
        name = f"{ticket.nonce.hex()}.report"
        try:
            write_whole(self.folder / name, payload)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LocalError(Code.DISK_FULL, f"{self.folder} is full.", fix="Free some space.") from error
            raise
        self._journal.store_report(ticket.nonce, header, name, ticket.not_after_ms, now_ms, masks)
        return StoredReport(ticket.nonce, header, name, ticket.not_after_ms)

    def clean(self) -> None:
        """After a power cut: remove files that were written, but never became reports."""
        known = {report.file for report in self._journal.reports()}
        for path in self.folder.glob("*.report*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def deliver(self, link: Link, report: StoredReport, now_ms: int, budget_s: float) -> tuple[str, str]:
        """Send one report: its outcome, `reported` or a code, and why. "" if it stays here for a later attempt."""
        try:
            self._send(link, report, budget_s)
        except FedlessError as error:
            if error.code is Code.ALREADY_REPORTED:  # an earlier answer was lost on its way here
                return REPORTED, ""
            if not may_pass(error):
                return error.code.value, error.detail
            if now_ms < report.until_ms + LATE_MS:
                return "", error.detail
            return Code.ROUND_CLOSED.value, "Nobody took the report for a week after its deadline."
        return REPORTED, ""

    def deliver_rest(
        self, link: Link, now_ms: int, end: Callable[[bytes, int, str, str], None]
    ) -> StoredReport | None:
        """Offer those of earlier; `end` hears nonce, round, outcome and why. The first that has to stay."""
        for report in self._journal.reports():
            outcome, detail = self.deliver(link, report, now_ms, _REST_S)
            round_id, said = report.header.round_id, outcome or "later"
            say("participant", "report_offered", round=round_id, outcome=said, why=detail)
            if not outcome:
                return report
            end(report.nonce, round_id, outcome, detail)
        return None

    def end(self, nonce: bytes, outcome: str, detail: str, now_ms: int) -> None:
        """Write the outcome, then remove the file."""
        file = self._journal.end(nonce, outcome, detail, now_ms)
        if file:
            (self.folder / file).unlink(missing_ok=True)

    def _send(self, link: Link, report: StoredReport, budget_s: float) -> None:
        path, header = self.folder / report.file, report.header
        if not path.is_file() or _sha256(path) != header.sha256:
            raise LocalError(Code.STATE_CORRUPT, "The stored report is damaged.")

        def once() -> None:
            offset, complete = link.begin_report(header)
            if not complete:
                link.put_report(header.round_id, offset, _chunks(path, offset))

        patiently(once, budget_s=budget_s, link=link)

    def _make_room(self, needed: int, now_ms: int) -> None:
        for report in self._journal.reports():
            if self._journal.outbox_bytes() + needed <= self._limit_bytes:
                return
            if report.until_ms < now_ms:
                self.end(
                    report.nonce,
                    Code.ROUND_CLOSED.value,
                    "Its deadline is past, and room was needed.",
                    now_ms,
                )
        if self._journal.outbox_bytes() + needed > self._limit_bytes:
            detail = f"The outbox may hold {self._limit_bytes} bytes; the report has {needed}."
            raise LocalError(Code.DISK_FULL, detail, fix="Raise outbox_mb of [limits] in edge.toml.")


def _chunks(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
