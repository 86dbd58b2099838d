"""An instance ends by its deadline, with its whole group, within its memory; what it says is bounded."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime.instance import MAX_OUTPUT_BYTES, Instance, invoke
from edge_runtime.jobs import Job, JobKind, Outcome
from fedless.protocol.errors import Code, FedlessError, LocalError

MLP = Path("examples/mnist/function-mlp").resolve()
GOOD = "    import numpy as np\n    return {'x': np.zeros((8, 28, 28), np.uint8), 'y': np.zeros(8, int)}\n"


def job(tmp_path: Path, body: str = GOOD, **changes: Any) -> Job:
    """A job whose provider runs `body`: the author's code is where an instance goes wrong."""
    for name in ("function.toml", "model.tflite"):
        (tmp_path / name).write_bytes((MLP / name).read_bytes())
    (tmp_path / "provider.py").write_text(f"def load(path, options):\n{body}")
    fields: dict[str, Any] = {"data": {"kind": "own", "path": str(tmp_path / "token")}, **changes}
    return Job(JobKind.TRAIN, str(tmp_path), str(MLP / "initial.f32"), **fields)


def run(described: Job, timeout_ms: int = 30_000) -> Outcome:
    return invoke(described, timeout_ms=timeout_ms)


def refusal(described: Job, timeout_ms: int = 30_000) -> FedlessError:
    with pytest.raises(FedlessError) as caught:
        run(described, timeout_ms)
    return caught.value


def open_files() -> int:
    return psutil.Process().num_fds()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_good_provider_trains(tmp_path: Path) -> None:
    assert run(job(tmp_path)).examples == 8


def test_an_early_start_waits_for_its_job(tmp_path: Path) -> None:
    with Instance.start() as instance:
        outcome = instance.run(job(tmp_path), timeout_ms=30_000)
        pid = instance.pid
    assert outcome.steps == 1
    assert not alive(pid)


def test_a_prepared_instance_reads_its_data_before_its_job_comes(tmp_path: Path) -> None:
    read = tmp_path / "read"
    described = job(tmp_path, f"    open({str(read)!r}, 'w').close()\n{GOOD}")
    with Instance.start() as instance:
        instance.prepare(described.place)
        until = time.monotonic() + 60
        while not read.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert read.exists()
        assert instance.run(described, timeout_ms=30_000).examples == 8


def test_what_goes_wrong_at_the_place_is_the_answer_to_the_job(tmp_path: Path) -> None:
    for body, code in (
        ("    return 5\n", Code.INSTANCE_BAD_RESULT),
        ("    raise MemoryError\n", Code.INSTANCE_MEMORY),
    ):
        described = job(tmp_path, body)
        with Instance.start() as instance:
            instance.prepare(described.place)
            with pytest.raises(FedlessError) as caught:
                instance.run(described, timeout_ms=30_000)
        assert caught.value.code is code


def test_an_instance_that_was_prepared_for_another_job_takes_none(tmp_path: Path) -> None:
    described = job(tmp_path)
    with Instance.start() as instance:
        instance.prepare(replace(described.place, threads=2))
        assert not instance.fits(described.place)
        with pytest.raises(LocalError) as caught:
            instance.run(described, timeout_ms=30_000)
    assert caught.value.code is Code.WRONG_STATE


def test_a_prepared_instance_that_dies_says_how(tmp_path: Path) -> None:
    described = job(tmp_path, "    import os\n    os._exit(7)\n")
    with Instance.start() as instance:
        instance.prepare(described.place)
        with pytest.raises(FedlessError) as caught:
            instance.run(described, timeout_ms=30_000)
    assert caught.value.code is Code.INSTANCE_FAILED
    assert "exit status 7" in caught.value.detail


def test_an_instance_that_is_not_needed_ends(tmp_path: Path) -> None:
    with Instance.start() as instance:
        pid = instance.pid
        assert alive(pid)
    assert not alive(pid)


def test_an_instance_takes_one_job(tmp_path: Path) -> None:
    with Instance.start() as instance:
        instance.run(job(tmp_path), timeout_ms=30_000)
        with pytest.raises(LocalError) as caught:
            instance.run(job(tmp_path), timeout_ms=30_000)
    assert caught.value.code is Code.WRONG_STATE


def test_function_that_hangs_is_stopped_with_its_whole_group(tmp_path: Path) -> None:
    body = (
        "    import os, signal, time\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    child = os.fork()\n"
        "    if child: open(path, 'w').write(f'{os.getpid()} {child}')\n"
        "    while True: time.sleep(1)\n"
    )
    began = time.monotonic()
    error = refusal(job(tmp_path, body), timeout_ms=2_000)
    assert error.code is Code.INSTANCE_TIMEOUT
    assert "2000 ms" in str(error)
    assert time.monotonic() - began < 60
    pids = [int(pid) for pid in (tmp_path / "token").read_text().split()]
    limit = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(alive, pids))


def test_function_that_needs_too_much_memory_is_stopped(tmp_path: Path) -> None:
    body = "    import numpy as np\n    keep = [np.ones(10**6) for _ in range(1000)]\n    return keep\n"
    error = refusal(job(tmp_path, body, memory_mb=150))
    assert error.code is Code.INSTANCE_MEMORY
    assert "150 MB" in str(error)


def test_function_that_was_killed_for_memory_says_so(tmp_path: Path) -> None:
    body = "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert refusal(job(tmp_path, body)).code is Code.INSTANCE_MEMORY


def test_function_that_crashes_says_how(tmp_path: Path) -> None:
    error = refusal(job(tmp_path, "    import os\n    os.abort()\n"))
    assert error.code is Code.INSTANCE_FAILED
    assert "SIGABRT" in str(error)


def test_function_that_exits_says_how(tmp_path: Path) -> None:
    error = refusal(job(tmp_path, "    import os\n    print('so long')\n    os._exit(3)\n"))
    assert error.code is Code.INSTANCE_FAILED
    assert "exit status 3" in str(error)
    assert "so long" in str(error)


def test_function_that_prints_without_end_costs_nothing(tmp_path: Path) -> None:
    body = "    import sys\n    for _ in range(2000): sys.stdout.write('x' * 10_000)\n" + GOOD
    with Instance.start() as instance:
        assert instance.run(job(tmp_path, body), timeout_ms=30_000).examples == 8
        assert len(instance._output) <= MAX_OUTPUT_BYTES


def test_provider_that_returns_the_wrong_type_is_refused(tmp_path: Path) -> None:
    assert refusal(job(tmp_path, "    return 5\n")).code is Code.INSTANCE_BAD_RESULT


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b"\0\0\0\x02xx",
        b'\0\0\0\x10{"event":"done"}',
        b'\0\0\0\x32{"event":"done","payload_bytes":99999999999999999}',
        b'\0\0\0\x2e{"event":"done","payload_bytes":0,"sums":5}    ',
        b'\0\0\0\x16{"event":"first_step"}',
    ],
)
def test_instance_that_breaks_the_protocol_is_refused(tmp_path: Path, said: bytes) -> None:
    """The author's code can reach the socket: whatever it writes there must not hurt the parent."""
    body = f"    import os, sys\n    fd = int(sys.argv[2])\n    os.write(fd, {said!r})\n    os._exit(0)\n"
    assert refusal(job(tmp_path, body)).code is Code.INSTANCE_BAD_RESULT


def test_payload_that_breaks_off_is_refused(tmp_path: Path) -> None:
    said = b'\0\0\0\x24{"event":"done","payload_bytes":100}'
    body = f"    import os, sys\n    os.write(int(sys.argv[2]), {said!r} + b'x' * 50)\n    os._exit(0)\n"
    assert refusal(job(tmp_path, body)).code is Code.INSTANCE_BAD_RESULT


def test_secrets_in_our_environment_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLESS__DATABASE__PASSWORD", "hunter2")
    body = "    import os\n    raise ValueError(sorted(os.environ))\n"
    error = refusal(job(tmp_path, body))
    assert "OMP_NUM_THREADS" in str(error)
    assert "PASSWORD" not in str(error)


@pytest.mark.parametrize("how", ["kill", "close"])
def test_kill_and_close_from_another_thread_end_the_run(tmp_path: Path, how: str) -> None:
    with Instance.start() as instance:
        body = "    import time\n    open(path, 'w').close()\n    time.sleep(60)\n"

        def kill_when_running() -> None:
            limit = time.monotonic() + 20
            while not (tmp_path / "token").exists() and time.monotonic() < limit:
                time.sleep(0.01)
            getattr(instance, how)()

        thread = threading.Thread(target=kill_when_running)
        thread.start()
        with pytest.raises(FedlessError) as caught:
            instance.run(job(tmp_path, body), timeout_ms=60_000)
        thread.join()
    assert caught.value.code is Code.INSTANCE_MEMORY  # SIGKILL from elsewhere is what the kernel does


def test_an_interpreter_that_is_not_there_is_reported() -> None:
    with pytest.raises(LocalError) as caught:
        Instance.start("/nonexistent/python")
    assert caught.value.code is Code.INSTANCE_FAILED


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = open_files()
    run(job(tmp_path))
    refusal(job(tmp_path, "    return 5\n"))
    assert open_files() == before
