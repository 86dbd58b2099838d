"""The `fedless` command as users meet it: messages, exit codes, nothing lost, never a traceback."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.founding import Ports
from fedless.protocol.claim import parse_claim
from tests.running_fleet import RunningFleet, fedless

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]

REST = 'name = "t"\nrounds = 1\nmode = "plain"\n[cohort]\nsize = 1\n'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


def fails(*arguments: str | Path, says: str, folder: Path | None = None, **environment: str) -> str:
    """The message of a command that must end with status 1, one `fedless:` message and no traceback."""
    done = fedless(*arguments, environment=environment, **({"folder": folder} if folder else {}))
    assert done.returncode == 1, done
    assert done.stderr.startswith("fedless: "), done.stderr
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    return done.stderr


def test_help_and_version() -> None:
    shown = fedless("--help")
    assert shown.returncode == 0
    for name in ("init", "aggregator", "fleet", "run", "model", "function", "experiment"):
        assert f"  {name} " in shown.stdout
    assert fedless("--version").stdout.startswith("fedless ")
    assert fedless("no-such-command").returncode == 2
    for name in ("aggregator", "fleet", "run", "model"):
        assert fedless(name, "--help").returncode == 0


def test_init_says_what_to_do_next_and_never_overwrites(tmp_path: Path) -> None:
    done = fedless("init", tmp_path / "Green House", "--host", "192.0.2.7")
    assert done.returncode == 0
    assert "Fleet 'green-house'" in done.stdout
    assert "fedless aggregator serve --fleet" in done.stdout
    assert "PRIVATE" not in done.stdout
    fails("init", tmp_path / "Green House", says="it is not overwritten")
    fails("init", tmp_path / "x", "--fleet", "operator", says="reserved")
    fails("init", tmp_path / "x", "--fleet-port", "7444", says="three different ports")
    assert not (tmp_path / "x").exists()


def test_claims_without_a_running_service(tmp_path: Path) -> None:
    fedless("init", tmp_path / "home", "--host", "192.0.2.7")
    done = fedless("fleet", "claim", "--count", "3", "--valid", "7d", "--fleet", tmp_path / "home")
    claims = [parse_claim(line) for line in done.stdout.splitlines()]
    assert {claim.address for claim in claims} == {"192.0.2.7:7444"}
    assert len({claim.secret for claim in claims}) == 3
    assert not any(claim.secret in done.stderr for claim in claims), "secrets go to standard output only"
    here = fedless("fleet", "claim", folder=tmp_path / "home")
    assert len(here.stdout.splitlines()) == 1
    assert (
        len(
            fedless(
                "fleet", "claim", environment={"FEDLESS_FLEET": str(tmp_path / "home")}
            ).stdout.splitlines()
        )
        == 1
    )


def test_claims_from_a_running_service(fleet: RunningFleet) -> None:
    done = fedless("fleet", "claim", "--name", "pump-1", "--label", "room=3", "--fleet", fleet.folder)
    assert parse_claim(done.stdout).address == fleet.endpoints["enrollment"][0]
    listed = fedless("fleet", "list", "--fleet", fleet.folder)
    assert "pump-1" in listed.stdout
    assert "claimed" in listed.stdout
    assert "room=3" in listed.stdout


def test_qr_code_is_drawn(fleet: RunningFleet) -> None:
    done = fedless("fleet", "claim", "--qr", "--fleet", fleet.folder)
    assert sum("█" in line for line in done.stdout.splitlines()) > 15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--valid", "7 weeks"], "Expected a duration such as 60s, 30m, 24h or 7d, found '7 weeks'."),
        (["--label", "room"], "Expected --label key=value, found 'room'."),
        (["--name", "operator"], "not reserved; found 'operator'"),
        (["--name", "Pump"], "a-z, 0-9 and '-'"),
    ],
)
def test_bad_wish_for_a_claim(fleet: RunningFleet, arguments: list[str], says: str) -> None:
    fails("fleet", "claim", *arguments, "--fleet", fleet.folder, says=says)


def test_revoke(fleet: RunningFleet) -> None:
    fleet.device("stolen")
    assert fedless("fleet", "revoke", "stolen", "--reason", "stolen", "--fleet", fleet.folder).returncode == 0
    assert "revoked" in fedless("fleet", "list", "--fleet", fleet.folder).stdout
    fails("fleet", "revoke", "nobody", "--fleet", fleet.folder, says="Found no 'nobody'")


def test_no_fleet_here(tmp_path: Path) -> None:
    said = fails(
        "fleet", "list", folder=tmp_path, says=f"Expected aggregator.toml (or operator.toml) in {tmp_path}"
    )
    assert "fedless init DIR" in said


def test_service_that_does_not_run(tmp_path: Path, free_port: Callable[[], int]) -> None:
    RunningFleet(tmp_path / "home", ports=Ports(free_port(), free_port(), free_port()))
    said = fails("fleet", "list", "--fleet", tmp_path / "home", says="Nothing answered at 127.0.0.1:")
    assert "fedless aggregator serve" in said


def test_operator_folder_alone_is_enough(fleet: RunningFleet, tmp_path: Path) -> None:
    shutil.copytree(fleet.folder / "operator", tmp_path / "operator")
    text = f'fleet = "home"\nendpoints = ["{fleet.endpoints["operator"][0]}"]\n'
    (tmp_path / "operator" / "operator.toml").write_text(text)
    assert fedless("fleet", "list", "--fleet", tmp_path / "operator").returncode == 0
    assert fedless("fleet", "claim", "--fleet", tmp_path / "operator").returncode == 0


def test_operator_of_another_fleet_is_refused(fleet: RunningFleet, tmp_path: Path) -> None:
    other = RunningFleet(tmp_path / "home")
    text = f'fleet = "home"\nendpoints = ["{fleet.endpoints["operator"][0]}"]\n'
    (other.folder / "operator" / "operator.toml").write_text(text)
    fails("fleet", "list", "--fleet", other.folder / "operator", says="is not this fleet's aggregator")


# -- starting the service


def test_second_aggregator_on_the_same_state(fleet: RunningFleet) -> None:
    assert fleet.process is not None
    says = f"Process {fleet.process.pid} holds {fleet.folder}/state."
    fails("aggregator", "serve", "--fleet", fleet.folder, says=says)


def test_bad_configuration_tells_every_mistake(tmp_path: Path) -> None:
    fedless("init", tmp_path / "home", "--host", "127.0.0.1")
    file = tmp_path / "home" / "aggregator.toml"
    file.write_text(file.read_text() + "\n[limits]\nstop_timeout_s = 0\n[lok]\nlevel = 1\n")
    said = fails(
        "aggregator",
        "serve",
        "--fleet",
        tmp_path / "home",
        says="limits.stop_timeout_s",
        FEDLESS__LOG__LEVEL="loud",
    )
    assert "lok: unknown key; did you mean 'log'?" in said
    assert "log.level: should be 'debug', 'info' or 'warning', found 'loud'" in said


@pytest.mark.parametrize("which", ["fleet", "enrollment", "mqtt"])
def test_port_in_use(tmp_path: Path, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        RunningFleet(
            tmp_path / "home", ports=Ports(**{"fleet": 0, "enrollment": 0, "mqtt": 0} | {which: port})
        )
        said = fails("aggregator", "serve", "--fleet", tmp_path / "home", says=f"127.0.0.1:{port}")
        assert "The port is in use." in said
        assert "hange " in said, "it says which key to change"


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("authority/authority.key", "Expected authority.pem and authority.key"),
        ("aggregator/ticket.key", "Expected the ticket key"),
        ("aggregator/cert.key", "Expected cert.pem and cert.key"),
        ("broker/cert.key", "Expected cert.pem and cert.key"),
        ("aggregator.toml", "Expected aggregator.toml"),
    ],
)
def test_missing_file(tmp_path: Path, file: str, says: str) -> None:
    RunningFleet(tmp_path / "home")
    (tmp_path / "home" / file).unlink()
    fails("aggregator", "serve", "--fleet", tmp_path / "home", says=says)


def test_damaged_database(tmp_path: Path) -> None:
    RunningFleet(tmp_path / "home")
    (tmp_path / "home" / "state" / "fedless.db").write_bytes(b"not a database, certainly not one" * 100)
    fails("aggregator", "serve", "--fleet", tmp_path / "home", says="The stored state is damaged.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    fleet = RunningFleet(tmp_path / "home")
    fleet.start()
    assert fleet.stop(number) == 0
    log = fleet.log.read_text()
    assert "event=aggregator_stopped" in log
    assert "Traceback" not in log


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = fedless("--debug", "fleet", "list", "--fleet", tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "fedless: The state directory is not set up." in done.stderr


# -- runs


def test_bad_task_tells_every_mistake(fleet: RunningFleet, tmp_path: Path) -> None:
    task = tmp_path / "task.toml"
    task.write_text('name = "t"\nfunction = "f"\nrounds = 0\ncolour = "red"\n[cohort]\nsize = 1\n')
    said = fails("run", "start", task, "--fleet", fleet.folder, says="rounds")
    assert "colour: unknown key" in said
    fails("run", "start", tmp_path / "none.toml", "--fleet", fleet.folder, says="cannot be read")


def test_missing_files_of_a_task(fleet: RunningFleet, tmp_path: Path) -> None:
    task = tmp_path / "task.toml"
    task.write_text('name = "t"\nfunction = "f.bundle"\nrounds = 1\nmode = "plain"\n[cohort]\nsize = 1\n')
    fails("run", "start", task, "--fleet", fleet.folder, says=f"function: {tmp_path}/f.bundle cannot be read")
    (tmp_path / "f.bundle").write_bytes(b"not a bundle")
    fails("run", "start", task, "--fleet", fleet.folder, says="found no key `initial`")
    task.write_text('function = "f.bundle"\ninitial = "i.f32"\n' + REST)
    (tmp_path / "i.f32").write_bytes(bytes(16))
    fails("run", "start", task, "--fleet", fleet.folder, says="bundle")
    assert "0 runs" in fedless("run", "list", "--fleet", fleet.folder).stderr


def test_unknown_run(fleet: RunningFleet, tmp_path: Path) -> None:
    for arguments in (["show", "x"], ["watch", "x"], ["stop", "x"]):
        fails("run", *arguments, "--fleet", fleet.folder, says="There is no such run.")
    fails("model", "export", "x", "-o", tmp_path / "m", "--fleet", fleet.folder, says="There is no such run.")


def test_bundle_of_an_unknown_publisher_is_refused(fleet: RunningFleet, tmp_path: Path) -> None:
    from fedless.authoring.sign import initial_weights, pack_and_sign

    function = Path(__file__).parents[2] / "examples" / "mnist" / "function-mlp"
    other = RunningFleet(tmp_path / "other")
    (tmp_path / "f.bundle").write_bytes(pack_and_sign(function, other.folder / "publisher" / "publisher.key"))
    (tmp_path / "i.f32").write_bytes(initial_weights(function))
    task = tmp_path / "task.toml"
    task.write_text('function = "f.bundle"\ninitial = "i.f32"\n' + REST)
    fails("run", "start", task, "--fleet", fleet.folder, says="publisher")


def test_run_is_started_listed_shown_paused_resumed_and_stopped(fleet: RunningFleet, tmp_path: Path) -> None:
    function = Path(__file__).parents[2] / "examples" / "mnist" / "function-mlp"
    task = tmp_path / "task.toml"
    task.write_text(f'function = "{function}"\n{REST}wait_s = 600\n')
    started = fedless("run", "start", task, "--fleet", fleet.folder)
    assert started.returncode == 0, started.stderr
    run = started.stdout.strip()
    assert run in fedless("run", "list", "--fleet", fleet.folder).stdout
    assert "state    running" in fedless("run", "show", run, "--fleet", fleet.folder).stdout
    assert f"{run} is paused." in fedless("run", "pause", run, "--fleet", fleet.folder).stdout
    shown = fedless("run", "show", run, "--fleet", fleet.folder).stdout
    assert "state    paused: paused by the operator" in shown
    resumed = fedless("run", "resume", run, "--fleet", fleet.folder).stdout
    assert f"{run} is running from model version 0 on." in resumed
    stopped = fedless("run", "stop", run, "--fleet", fleet.folder)
    assert f"{run} is stopped; its newest model is version 0." in stopped.stdout
    watched = fedless("run", "watch", run, "--fleet", fleet.folder)
    assert "state    stopped" in watched.stdout
    assert watched.returncode == 1, "a run that did not finish is no success"
    out = tmp_path / "model.f32"
    exported = fedless("model", "export", run, "-o", out, "--fleet", fleet.folder)
    assert "101770 parameters" in exported.stdout
    assert out.read_bytes() == (function / "initial.f32").read_bytes()


def test_a_fleet_too_small_for_masks_is_told_so_and_may_go_without(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    function = Path(__file__).parents[2] / "examples" / "mnist" / "function-mlp"
    task = tmp_path / "task.toml"
    task.write_text(f'name = "t"\nfunction = "{function}"\nrounds = 1\n[cohort]\nsize = 1\nwait_s = 600\n')
    said = fails("run", "start", task, "--fleet", fleet.folder, says="Masked rounds need 8 enrolled clients")
    assert "--plain" in said
    started = fedless("run", "start", task, "--plain", "--fleet", fleet.folder)
    assert started.returncode == 0, started.stderr
