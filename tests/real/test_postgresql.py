"""The store on a real PostgreSQL that is killed, taken over, shared, and asked for secrets."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import psycopg
import pytest
from sqlalchemy import Connection, insert, make_url, select, text

from aggregator.store import schema
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, LocalError
from tests.postgresql import Server, started

pytestmark = pytest.mark.real


def adding(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(insert(schema.counters).values(client_id=name, name="x", count=1, last_at_ms=1))
        return name

    return work


def names(connection: Connection) -> list[str]:
    query = select(schema.counters.c.client_id).order_by(schema.counters.c.client_id)
    return [row.client_id for row in connection.execute(query)]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may kill, and starts again."""
    server = started(_port)
    yield server
    server.remove()


def _port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_thread(work: Callable[[], str]) -> Future[str]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


# -- one aggregator per database


def test_second_aggregator_is_refused_by_name(postgresql: Server) -> None:
    url = postgresql.url()
    first = Database.open(url)
    with pytest.raises(LocalError, match=r"fedless on .*, process \d+ works on this database") as refusal:
        Database.open(url, wait_s=0.1)
    assert refusal.value.code is Code.STATE_LOCKED
    looking = Database.open(url, sole=False)
    assert looking.run_now(names) == []
    looking.close()
    first.close()
    Database.open(url).close()


def cut(server: Server, url: str) -> None:
    """Ends the connections to a database from outside, as a network does."""
    name = make_url(url).database
    ended = server.execute(
        f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    assert ended == [(True,)]


def test_a_cut_connection_comes_back(postgresql: Server) -> None:
    url = postgresql.url()
    database = Database.open(url)
    database.run_now(adding("a"))
    cut(postgresql, url)
    database.run_now(adding("b"))
    assert database.run_now(names) == ["a", "b"]
    database.close()


def test_aggregator_that_lost_the_database_writes_nothing_more(postgresql: Server) -> None:
    """What it holds in memory is older than the database: it stops, even when the other one has ended again."""
    url = postgresql.url()
    lost: list[LocalError] = []
    first = Database.open(url, on_lost=lost.append)
    holding, go_on = Event(), Event()

    def hold(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        holding.set()
        assert go_on.wait(30)

    waiting = in_thread(lambda: str(first.run_now(hold)))
    assert holding.wait(30)
    cut(postgresql, url)
    second = Database.open(url)
    second.run_now(adding("second"))
    second.close()
    go_on.set()
    with pytest.raises(LocalError, match="took the database over"):
        waiting.result(30)
    with pytest.raises(LocalError) as refusal:
        first.run_now(adding("first"))
    assert refusal.value.code is Code.STATE_LOCKED
    assert lost
    first.close()
    again = Database.open(url)
    assert again.run_now(names) == ["second"]
    again.close()


# -- a server that is killed


def test_work_waits_for_a_server_that_is_killed_and_comes_back(own_server: Server) -> None:
    database = Database.open(own_server.url())
    database.run_now(adding("a"))
    own_server.stop(signal.SIGKILL)
    waiting = in_thread(lambda: database.run_now(adding("b")))
    own_server.start()
    assert waiting.result(60) == "b"
    assert database.run_now(names) == ["a", "b"]
    database.close()


def test_waiting_for_a_server_is_bounded_and_says_why(own_server: Server) -> None:
    url = own_server.url()
    database = Database.open(url, wait_s=0.5)
    own_server.stop(signal.SIGKILL)
    with pytest.raises(LocalError, match="PostgreSQL cannot be used") as refusal:
        database.run_now(adding("a"))
    assert refusal.value.code is Code.STORE_UNREACHABLE
    own_server.start()
    assert database.run_now(names) == [], "what was refused is not done later"
    own_server.stop()
    database.close()
    with pytest.raises(LocalError) as refusal:
        Database.open(url, wait_s=0.5)
    assert refusal.value.code is Code.STORE_UNREACHABLE
    own_server.start()


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "undone"])
def test_answer_to_a_commit_that_was_lost_is_looked_up(
    postgresql: Server, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies while the commit is under way: done once, whether or not it was done."""
    url = postgresql.url()
    database = Database.open(url)
    times: list[int] = []

    def lose(connection: psycopg.Connection[object]) -> None:
        if not times:
            times.append(1)
            if committed:
                connection.pgconn.exec_(b"COMMIT")
            connection.pgconn.finish()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        connection.pgconn.exec_(b"COMMIT")

    monkeypatch.setattr(psycopg.Connection, "commit", lose)
    assert database.run_now(adding("a")) == "a"
    assert database.run_now(names) == ["a"]
    assert times
    database.close()


# -- what the server says no to


def test_one_bad_value_undoes_nothing_of_its_neighbours(postgresql: Server) -> None:
    """PostgreSQL keeps to lengths, and to text without NUL; SQLite does not."""
    database = Database.open(postgresql.url())
    holding, go_on = Event(), Event()

    def hold(_connection: Connection) -> None:
        holding.set()
        assert go_on.wait(30)

    first = in_thread(lambda: str(database.run_now(hold)))
    assert holding.wait(30)
    later = [in_thread(lambda name=name: database.run_now(adding(name))) for name in ("a", "x" * 65, "b")]  # type: ignore[misc]
    go_on.set()
    first.result(30)
    assert later[0].result(30) == "a"
    with pytest.raises(Exception, match="too long"):
        later[1].result(30)
    assert later[2].result(30) == "b"
    assert database.run_now(names) == ["a", "b"]
    database.close()


def test_wrong_password_is_said_at_once_and_never_shown(own_server: Server) -> None:
    own_server.execute("CREATE ROLE agg LOGIN PASSWORD 'right'")
    rules = own_server.data / "pg_hba.conf"
    rules.write_text(f"host all agg 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    own_server.execute("SELECT pg_reload_conf()")
    own_server.execute("GRANT CREATE ON SCHEMA public TO agg")
    url = f"postgresql://agg:{{}}@127.0.0.1:{own_server.port}/postgres"
    with pytest.raises(LocalError, match="password authentication failed") as refusal:
        Database.open(url.format("hunter2"))
    assert "hunter2" not in str(refusal.value)
    Database.open(url.format("right")).close()


def test_bad_urls_are_refused_without_being_shown() -> None:
    for url in ("hunter2", "mysql://u:hunter2@db/x"):
        with pytest.raises(LocalError) as refusal:
            Database.open(url)
        assert refusal.value.code is Code.CONFIG_INVALID
        assert "hunter2" not in str(refusal.value)
