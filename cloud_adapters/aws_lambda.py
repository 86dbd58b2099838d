"""AWS Lambda through its SDK: synchronous (RequestResponse, with the REPORT line) or as an event.

A failed function shows in three shapes: the FunctionError header, JSON with errorMessage and errorType, and the text
"Task timed out" (docs.aws.amazon.com/lambda, "Invoke"). The SDK's own retries are off: ours take a fresh claim.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import re
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from cloud_adapters.base import MAYBE, TEXT, Figures, Invoker, Limit, Limits, Receipt, scrubbed
from fedless.protocol.cloud import Answer
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.tables import Table

_DOCS = "docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"
_CONNECTIONS = 256
_MINUTE_S = 60
_REPORT = re.compile(
    r"(Billed Duration|Init Duration|Duration|Memory Size|Max Memory Used): ([0-9.]+) (?:ms|MB)"
)
_ACCEPTED = 202
_BUSY = {"TooManyRequestsException", "ServiceException", "EC2ThrottledException", "ResourceNotReadyException",
         "ThrottlingException"}  # fmt: skip
_DENIED = {"AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException",
           "MissingAuthenticationTokenException"}  # fmt: skip
_CLOCK = {"RequestExpired", "RequestTimeTooSkewed", "InvalidSignatureException"}
_FIX = "Check the aggregator's AWS credentials, and that they allow lambda:InvokeFunction."


class AwsLambda(Invoker):
    """Settings: `function` (name or ARN), `region`, `mode` (sync, event), `qualifier`, `profile`, `endpoint_url`."""

    platform = "aws-lambda"
    limits = Limits(
        time_ms=Limit(900_000, f"{_DOCS}: 900 s"),
        payload_bytes=Limit(1 << 20, f"{_DOCS}: 6 MB synchronous, 1 MB asynchronous"),
        memory_mb=Limit(10_240, f"{_DOCS}: 10,240 MB"),
        concurrency=Limit(
            1000, f"{_DOCS}: 1,000 concurrent executions of an account and region, new accounts fewer"
        ),
        exchange_bytes=Limit(6_000_000, f"{_DOCS}: 6 MB each for request and response (synchronous)"),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._function = table.text("function", TEXT)
        self._region = table.text("region", TEXT)
        self._mode = table.choice("mode", ("sync", "event"))
        self._qualifier = table.text("qualifier", MAYBE, "")
        self._profile = table.text("profile", MAYBE, "")
        self._endpoint = table.text("endpoint_url", MAYBE, "")

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """One attempt, in a thread of its own: the SDK blocks, and must not hold up the end of our process."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Receipt] = loop.create_future()

        def settle(put: Callable[[Any], None], value: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if future.done() else put(value))

        def work() -> None:
            try:
                receipt = self._invoke(body, timeout_s)
            except Exception as error:  # noqa: BLE001 - it goes to whoever awaits
                settle(future.set_exception, error)
            else:
                settle(future.set_result, receipt)

        threading.Thread(target=work, name=f"aws-lambda {self.client_id}", daemon=True).start()
        return await future

    def _invoke(self, body: bytes, timeout_s: float) -> Receipt:
        request: dict[str, Any] = {"FunctionName": self._function, "Payload": body}
        if self._qualifier:
            request["Qualifier"] = self._qualifier
        if self._mode == "event":
            request["InvocationType"] = "Event"
        else:
            request |= {"InvocationType": "RequestResponse", "LogType": "Tail"}
        try:
            client = _client(self._region, self._profile, self._endpoint, _whole(timeout_s))
            response = client.invoke(**request)
            payload = response["Payload"].read()
        except ClientError as error:
            raise self._refused(error) from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise self.error(
                Code.PLATFORM_UNREACHABLE, f"No connection ({type(error).__name__})", _FIX
            ) from error
        except ReadTimeoutError as error:
            said = f"It took the call and did not answer within {timeout_s:.0f} s"
            raise self.error(
                Code.PLATFORM_TIMEOUT, said, "The function may still run; its report counts."
            ) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise self.error(Code.PLATFORM_DENIED, "The SDK found no credentials", _FIX) from error
        except BotoCoreError as error:
            said = f"{type(error).__name__}: {scrubbed(str(error))}"
            raise self.error(Code.PLATFORM_ANSWER, said, "Look into the function's log.") from error
        if self._mode == "event":
            return self._accepted(int(response["StatusCode"]))
        return self._answered(response, payload)

    def _accepted(self, status: int) -> Receipt:
        if status != _ACCEPTED:
            raise self.error(Code.PLATFORM_ANSWER, f"Expected 202 for an event, found {status}")
        return Receipt()

    def _answered(self, response: Any, payload: bytes) -> Receipt:  # noqa: ANN401 - the SDK's mapping
        text = payload.decode("utf-8", "replace")
        try:
            values = json.loads(text)
        except ValueError:
            values = text
        failed = response.get("FunctionError") or (isinstance(values, dict) and "errorMessage" in values)
        if failed or "Task timed out" in text[:200]:
            said = values.get("errorMessage", text) if isinstance(values, dict) else text
            raise self.error(
                Code.FUNCTION_FAILED, f"The function failed: {scrubbed(str(said))}",
                "Look into its log; if it ran out of time or memory, deploy it with more.",
            )  # fmt: skip
        if not isinstance(values, dict):
            raise self.error(
                Code.PLATFORM_ANSWER, f"Expected JSON, found {len(payload)} bytes: {scrubbed(text)}"
            )
        answer = self.answered(values)
        log = base64.b64decode(response.get("LogResult", "")).decode("utf-8", "replace")
        return Receipt(answer, self._figures(log, answer))

    def _figures(self, log: str, answer: Answer) -> Figures:
        """Lambda's own figures in its REPORT line; the function's where there is none."""
        report = dict(_REPORT.findall(log.rpartition("REPORT ")[2]))
        if "Billed Duration" not in report:
            return Figures("function", answer.total_ms, answer.total_ms, answer.import_ms,
                           memory_mb=self.size.memory_mb, peak_mb=answer.peak_rss_mb)  # fmt: skip
        return Figures(
            source="platform",
            billed_ms=float(report["Billed Duration"]),
            run_ms=float(report.get("Duration", 0)),
            init_ms=float(report.get("Init Duration", 0)),
            memory_mb=int(float(report.get("Memory Size", self.size.memory_mb))),
            peak_mb=float(report.get("Max Memory Used", 0)),
        )

    def _refused(self, error: ClientError) -> PeerError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"It answered {status} {scrubbed(code)}: {scrubbed(message)}".rstrip(": ")
        meaning, fix = _meaning(code, message.lower(), status)
        if 300 <= status < 400:  # noqa: PLR2004 - HTTP's redirects
            said += "; that is not followed"
        return self.error(meaning, said, fix)


def _meaning(code: str, message: str, status: int) -> tuple[Code, str]:
    """What an error of the API means, and what to do; `code` is its exception's name, `message` in lower case."""
    late = "expired" in message or "skew" in message or code != "InvalidSignatureException"
    cases = (
        (code in _BUSY or status in (429, 502, 503), Code.PLATFORM_BUSY, ""),
        (
            code in _CLOCK and late,
            Code.CLOCK_WRONG,
            "Set the aggregator's clock: the signature carries its time.",
        ),
        (code in _DENIED | _CLOCK or status in (401, 403), Code.PLATFORM_DENIED, _FIX),
        (
            code == "ResourceNotFoundException" or status == 404,  # noqa: PLR2004 - HTTP
            Code.FUNCTION_UNKNOWN,
            "Deploy it, or correct its name, region or qualifier.",
        ),
        (status == 413, Code.FUNCTION_LIMIT, ""),  # noqa: PLR2004 - HTTP
        (300 <= status < 400, Code.PLATFORM_ANSWER, "Check endpoint_url."),  # noqa: PLR2004 - HTTP
    )
    found = ((meaning, fix) for fits, meaning, fix in cases if fits)
    return next(found, (Code.FUNCTION_FAILED, "Look into the function's log."))


def _whole(timeout_s: float) -> int:
    """Seconds; from a minute on whole minutes, so that a client serves many calls."""
    return (
        max(1, math.ceil(timeout_s))
        if timeout_s < _MINUTE_S
        else math.ceil(timeout_s / _MINUTE_S) * _MINUTE_S
    )


@cache
def _client(region: str, profile: str, endpoint: str, timeout_s: int) -> Any:  # noqa: ANN401 - the SDK makes its classes
    """A client is thread-safe and dear (0.1 s); its read timeout is its own."""
    session = boto3.Session(profile_name=profile or None, region_name=region)
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=10,
        read_timeout=timeout_s,
        max_pool_connections=_CONNECTIONS,
    )
    return session.client("lambda", endpoint_url=endpoint or None, config=config)
