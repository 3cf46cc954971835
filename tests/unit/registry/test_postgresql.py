"""MLflow's registry in a real PostgreSQL: promotions at once, kills in the middle, and a server that dies."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from pat.launch.environment import free_port
from pat.registry.backend import BackendError
from pat.registry.mlflow_backend import MlflowBackend
from pat.registry.moves import PENDING
from pat.registry.registry import Registry
from tests.install import problem_of
from tests.registry_files import in_process, killed_at, start
from tests.unit.registry.test_registry import small

pytestmark = [pytest.mark.slow, pytest.mark.real_processes]
MIGRATING = 300  # statements and file operations after which MLflow migrates tables that it has just made


def folders() -> str:
    """Where PostgreSQL's programs may be."""
    found = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return os.pathsep.join([os.environ.get("PATH", ""), *found])


@dataclass
class Server:
    """One of its own, in a folder of its own."""

    folder: Path
    port: int
    user: str | None  # PostgreSQL refuses to run as root

    def run(self, program: str, *arguments: str) -> None:
        found = shutil.which(program, path=folders())
        assert found
        with open(self.folder / "said", "ab") as said:
            subprocess.run(
                [found, *arguments], check=True, stdout=said, stderr=said, user=self.user, cwd=self.folder, timeout=400
            )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run(
            "pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-w", "-t", "300", "-l", f"{self.folder}/log", "start"
        )

    def stop(self, how: str) -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", how, "-w", "-t", "300", "stop")

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg://someone:secret@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not shutil.which("initdb", path=folders()) and (problem := problem_of("postgresql")):
        pytest.skip(f"there is no PostgreSQL server here, and {problem}")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'pat-deepspeed[postgresql]'")
    user = None
    if os.geteuid() == 0:
        user = next((each.pw_name for each in pwd.getpwall() if each.pw_name in ("postgres", "nobody")), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    folder = Path(tempfile.mkdtemp(prefix="pat-postgres-"))  # not below pytest's: only its own user may go there
    made = Server(folder, free_port(), user)
    try:
        if user is not None:
            shutil.chown(folder, user)
        made.run("initdb", "-D", f"{folder}/data", "-U", "someone", "-A", "trust", "--no-sync")
        made.start()
        yield made
        made.stop("fast")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def apart() -> None:
    """Before a fork: no process may talk on a connection of another one, and MLflow keeps its own."""
    from sqlalchemy.engine import Engine

    engines = [each for each in gc.get_objects() if issubclass(type(each), Engine)]  # a weak proxy has its own type
    for each in engines:
        each.dispose()


def opened(root: Path, server: Server) -> Registry:
    return Registry(root, lambda new: MlflowBackend(server.uri, new))


def chain(registry: Registry) -> list[int | None]:
    """What champion stood for, one after the other; each move began where the one before had ended."""
    moves = registry.history("demo")
    assert [each.number for each in moves] == list(range(1, len(moves) + 1))
    assert [each.before for each in moves] == [None, *(each.after for each in moves[:-1])]
    return [each.after for each in moves]


def tables(server: Server) -> set[str]:
    import psycopg

    with psycopg.connect(server.uri.replace("+psycopg", "")) as connection:
        return {name for (name,) in connection.execute("select tablename from pg_tables where schemaname = 'public'")}


def test_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    """One test, for the tables of MLflow take seconds to make. Would catch: two promotions that both begin at the same
    version, an alias that was moved and has no history, a move that a kill leaves half done for ever, and tables that a
    kill leaves half made so that no later command makes the others."""
    import sqlalchemy  # before the kill, which looks where it is

    root = tmp_path / "registry"
    folders = [small(tmp_path / str(number), number) for number in (1, 2, 3)]
    assert sqlalchemy and tables(server) == set()

    def first() -> None:
        with killed_at(MIGRATING):
            opened(root, server).add("demo", folders[0], {})

    assert in_process(first) == -signal.SIGKILL
    assert "model_versions" not in tables(server) and tables(server), "in the middle of MLflow's migrations"

    for number, folder in enumerate(folders, 1):
        assert opened(root, server).add("demo", folder, {})[0].number == number
    opened(root, server).promote("demo", "1", "champion")

    apart()
    started = [start(lambda n=n: opened(root, server).promote("demo", n, "champion")) for n in ("2", "3")]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started] == [0, 0]
    order = chain(opened(root, server))
    assert order in ([1, 2, 3], [1, 3, 2])
    assert opened(root, server).version("demo", "champion").number == order[-1]

    kills, moment = 0, 0
    while True:  # at every third moment of a promotion: each finds what the one before has left

        def one(moment: int = moment) -> None:
            with killed_at(moment):
                opened(root, server).promote("demo", "1", "champion")

        apart()
        code = in_process(one)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills, moment = kills + 1, moment + 3
    assert kills > 3 and chain(opened(root, server)) == [*order, 1]
    assert not any(key.startswith(PENDING) for key in MlflowBackend(server.uri).notes("demo"))

    server.stop("immediate")  # as a power cut
    try:
        with pytest.raises(BackendError) as error:
            opened(root, server).promote("demo", "2", "champion")
        assert "secret" not in str(error.value) and "\n" not in str(error.value)
    finally:
        server.start()
    assert opened(root, server).rollback("demo", "champion").after == order[-1]
    assert chain(opened(root, server)) == [*order, 1, order[-1]]
