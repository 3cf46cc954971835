"""The same on MLflow's registry in SQLite: what a backend must do, real commands, kills, and a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pat import cli
from pat.registry import mlflow_backend
from pat.registry.backend import Backend, BackendError
from pat.registry.mlflow_backend import FILE, MlflowBackend, address, redacted
from pat.registry.registry import Registry
from pat.run.directory import ExitCode
from tests import models
from tests.registry_files import FileBackend, killed_everywhere, start
from tests.unit.registry.test_registry import contents, small

slow = pytest.mark.slow
SLOW_START = "starting MLflow ...\n"  # said where its import takes long


def opened(root: Path) -> Registry:
    return Registry(root, lambda new: MlflowBackend(address(None, root), new))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["registry", *map(str, arguments)])
    return int(str(stop.value.code))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty one: making it takes MLflow seconds."""
    root = tmp_path_factory.mktemp("empty")
    MlflowBackend(address(None, root), new=True)
    return (root / FILE).read_bytes()


@pytest.fixture
def root(database: bytes, tmp_path: Path) -> Path:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / FILE).write_bytes(database)
    return tmp_path / "registry"


@pytest.mark.parametrize("kind", [pytest.param("mlflow", marks=slow), "file"])
def test_what_a_backend_does(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    backend: Backend = FileBackend(tmp_path / "backend.json")
    if kind == "mlflow":
        backend = MlflowBackend(address(None, request.getfixturevalue("root")))
    assert backend.names() == [] and backend.versions("a") == []
    assert backend.aliases("a") == {} and backend.notes("a") == {}
    assert [backend.add("a", "pat-variant:/0", {"x": str(n)}) for n in range(12)] == list(range(1, 13))
    assert backend.add("b", "pat-variant:/0", {}) == 1
    assert backend.names() == ["a", "b"]
    assert [(each.number, each.tags) for each in backend.versions("a")] == [(n + 1, {"x": str(n)}) for n in range(12)]
    for number in (11, 2, 2):
        backend.set_alias("a", "champion", number)
        assert backend.aliases("a") == {"champion": number} and backend.aliases("b") == {}
    backend.note("a", "pat.history.champion.000001", '{"ä": 1}')
    backend.note("a", "pat.history.champion.000001", "z" * 5000)
    backend.note("a", "gone", "1")
    backend.note("a", "gone", None)
    assert backend.notes("a") == {"pat.history.champion.000001": "z" * 5000} and backend.notes("b") == {}


@slow
def test_the_commands(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = small(tmp_path / "one", 1), small(tmp_path / "two", 2)
    gate, bad, metrics = (tmp_path / f"{name}.json" for name in ("gate", "bad", "metrics"))
    metrics.write_text(json.dumps({"models": [{"folder": "two", "metrics": {"loss": 1.0}}]}))
    gate.write_text(json.dumps({"passed": True}))
    bad.write_text(json.dumps({"passed": False, "checks": [{"name": "accuracy", "passed": False}]}))
    there = ("--dir", root)
    assert run("add", "demo", one, *there) == 0
    assert run("add", "demo", two, "--metrics", metrics, *there) == 0
    assert run("promote", "demo", 1, "--as", "champion", "--gate", gate, "--reason", "first", *there) == 0
    assert run("promote", "demo", 2, "--as", "champion", "--gate", bad, *there) == ExitCode.BROKEN_PROMISE
    assert "did not pass its gate: accuracy" in capsys.readouterr().err
    assert run("promote", "demo", 2, "--as", "champion", "--expect", 1, *there) == 0
    assert run("promote", "demo", 2, "--as", "champion", *there) == 0
    assert "champion of demo is version 2 already: nothing has moved" in capsys.readouterr().out
    assert run("add", "demo", two, "--metrics", bad, *there) == ExitCode.BAD_INPUT
    assert "is what `pat gate --json` wrote: give what `pat evaluate --json` wrote" in capsys.readouterr().err
    assert run("add", "demo", two, "--profile", metrics, *there) == ExitCode.BAD_INPUT
    assert "is what `pat evaluate --json` wrote: give what `pat profile --json` wrote" in capsys.readouterr().err
    assert run("rollback", "demo", "--as", "champion", *there) == 0
    assert run("get", "demo", "champion", "--out", tmp_path / "out", *there) == 0
    assert contents(tmp_path / "out") == contents(one)
    assert run("list", "--json", tmp_path / "list.json", *there) == run("list", "demo", *there) == 0
    assert run("list", "other", *there) == ExitCode.BAD_INPUT and "it has demo" in capsys.readouterr().err
    assert run("show", "demo", "--json", tmp_path / "show.json", *there) == 0
    assert run("show", "demo", 1, *there) == 0
    assert run("diff", "demo", 1, 2, *there) == 0
    said = capsys.readouterr().out
    assert "first" in said and "not recorded" in said and "nothing was pruned" in said
    history = json.loads((tmp_path / "show.json").read_text())["history"]
    assert [(each["kind"], each["after"]) for each in history] == [("promote", 1), ("promote", 2), ("rollback", 1)]
    assert json.loads((tmp_path / "list.json").read_text())["demo"][0]["aliases"] == ["champion"]
    assert run("verify", "demo", 1, *there) == ExitCode.BROKEN_PROMISE, "config.json names no class"


@slow
def test_a_monitor_follows_an_alias_that_mlflow_moves(root: Path, tmp_path: Path) -> None:
    """As MLflow's own page and client move one: the next `pat monitor --against champion` asks the other version."""
    from mlflow.tracking import MlflowClient

    for number in (1, 2):
        folder = models.write_llama(tmp_path / str(number))
        (folder / "note.txt").write_text(str(number))
        assert opened(root).add("law", folder, {})[0].number == number
    (tmp_path / "prod.jsonl").write_text("".join(json.dumps({"prompt": "ab " * (1 + i % 3)}) + "\n" for i in range(12)))
    said, uri = tmp_path / "said.json", address(None, root)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for number in (1, 2):
        client.set_registered_model_alias("law", "champion", str(number))
        with pytest.raises(SystemExit) as stop:
            given = [tmp_path / "prod.jsonl", "--against", "champion", "--dir", root, "--device", "cpu", "--json", said]
            cli.main(["monitor", *map(str, given)])
        assert stop.value.code == 0 and json.loads(said.read_text())["against"] == f"law/{number}"
    assert [each.kind for each in opened(root).history("law")] == [], "to look is not to note"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["promote", "demo", "1"], "--as is missing"),
        (["promote", "demo", "--as", "champion"], "takes 2 words"),
        (["list", "--gate", "g.json"], "--gate would be ignored"),
        (["rollback", "demo", "--as", "a", "--out", "x"], "--out would be ignored"),
        (["get", "demo", "1"], "--out is missing"),
        (["list"], "there is no registry in"),
        (["list", "--uri", "file:///tmp/x"], "writes without transactions"),
        (["add", "demo", ".", "--gate", "no.json"], "there is no such file; give what `pat gate --json` wrote"),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err.replace(SLOW_START, "")
    assert words in said and said.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in mlflow_backend.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert address(None, tmp_path) == f"sqlite:///{tmp_path}/{FILE}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert address(None, tmp_path) == "http://tracking:5000"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "postgresql://u:secret@host/db")
    assert (
        address(None, tmp_path) == "postgresql://u:secret@host/db" and address("sqlite:///x", tmp_path) == "sqlite:///x"
    )


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://u:secret@host/db", "postgresql://***@host/db"),
        ("postgresql://bob:pa55/word@localhost/db", "postgresql://***@localhost/db"),
        ("postgresql://bob:55/word@localhost/db", "postgresql://***@localhost/db"),
        ("postgresql://bob:a b?c#d@localhost/db@x", "postgresql://***@localhost/db@x"),
        ("postgresql://bob:p@ss@localhost:5432/db", "postgresql://***@localhost:5432/db"),
        (
            "postgresql+psycopg://h/db?user=bob&password=pw&x=a@b",
            "postgresql+psycopg://h/db?user=bob&password=***&x=a@b",
        ),
        ("http://u:tok/en@host:5000", "http://***@host:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("http://host/a?b=c@d", "http://host/a?b=c@d"),
        ("sqlite:////home/a@b/registry.db", "sqlite:////home/a@b/registry.db"),
        ("git@github.com:someone/repository.git", "git@github.com:someone/repository.git"),
        ("http://host:5000 failed, ask a@b", "http://host:5000 failed, ask a@b"),
    ],
)
def test_credentials_are_not_shown_and_all_else_is(uri: str, shown: str) -> None:
    """As SQLAlchemy reads a database's URI."""
    assert redacted(uri) == shown


@slow
def test_a_password_is_in_no_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path / "one")
    uri = "mysql+nodriver://someone:secret@localhost/x"
    code = run("add", "demo", folder, "--dir", tmp_path / "registry", "--uri", uri)
    said = capsys.readouterr()
    assert code == ExitCode.ERROR and "secret" not in said.err + said.out, said.err
    last = said.err.splitlines()[-1]  # a slow start of MLflow is said before
    assert last.startswith("pat: the registry at mysql+nodriver://***@localhost/x failed")
    assert not (tmp_path / "registry" / "variants").exists(), "nothing was copied"


@slow
def test_a_server_that_is_gone_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: MLflow's own patience of four minutes, without a word and with the registry locked."""
    retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        uri = f"http://someone:secret@127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv(retries, "")
        monkeypatch.delenv(retries)
        MlflowBackend(uri)
        assert int(os.environ[retries]) <= 3
        monkeypatch.setenv(retries, "0")
        code = run("add", "demo", small(tmp_path / "one"), "--dir", tmp_path / "registry", "--uri", uri)
    said = capsys.readouterr().err.replace(SLOW_START, "")
    assert code == ExitCode.ERROR and said.count("\n") == 1 and "secret" not in said, said
    assert os.environ[retries] == "0", "what the user sets is left as it is"
    assert not (tmp_path / "registry" / "variants").exists(), "nothing was copied"


@slow
@pytest.mark.real_processes
def test_kills_at_every_statement(root: Path, tmp_path: Path) -> None:
    first, second = small(tmp_path / "first", 1), small(tmp_path / "second", 2)
    code = os.waitstatus_to_exitcode(os.waitpid(start(lambda: opened(root).add("demo", first, {})), 0)[1])
    assert code == 0

    def look() -> None:
        for version in opened(root).versions("demo"):
            opened(root).checked(version)

    assert killed_everywhere(lambda: opened(root).add("demo", second, {}), look) > 20
    assert [version.number for version in opened(root).versions("demo")] == [1, 2]
    opened(root).promote("demo", "1", "champion")
    assert killed_everywhere(lambda: opened(root).promote("demo", "2", "champion"), look) > 6
    moved = [(each.before, each.after) for each in opened(root).history("demo")]
    assert moved == [(None, 1), (1, 2)]
    assert opened(root).rollback("demo", "champion").after == 1


@slow
@pytest.mark.real_processes
def test_commands_at_once_on_a_registry_that_is_not_there_yet(tmp_path: Path) -> None:
    """Fails if two processes make the database at once."""
    root = tmp_path / "registry"
    command = [sys.executable, "-m", "pat.cli", "registry", "add", "demo"]
    started = [
        subprocess.Popen([*command, small(tmp_path / str(n), n), "--dir", root], stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for each in started:
        said = each.communicate()[1]
        assert each.returncode == 0, said
    assert [version.number for version in opened(root).versions("demo")] == [1, 2, 3]
    assert not list(root.glob(".registry.db*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can only be mounted by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@slow
def test_a_full_disk(small_disk: Path, database: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_disk / "registry"
    root.mkdir()
    (root / FILE).write_bytes(database)
    one, two, large = small(tmp_path / "one", 1), small(tmp_path / "two", 2), small(tmp_path / "large", 3)
    (large / "tokenizer.json").write_bytes(b" " * (3 << 20))
    for folder in (one, two):
        assert run("add", "demo", folder, "--dir", root) == 0
    assert run("promote", "demo", 1, "--as", "champion", "--dir", root) == 0
    assert run("add", "demo", large, "--dir", root) == ExitCode.ERROR
    assert "No space left on device" in capsys.readouterr().err
    assert not list((root / "adding").iterdir()) and len(list((root / "variants").iterdir())) == 2

    filler = small_disk / "filler"
    with open(filler, "wb") as file:
        try:
            while True:
                os.write(file.fileno(), b" " * 4096)
        except OSError:
            pass
    assert run("promote", "demo", 2, "--as", "champion", "--dir", root) == ExitCode.ERROR
    said = capsys.readouterr().err.replace(SLOW_START, "")
    assert said.count("\n") == 1 and "full" in said, said
    filler.unlink()
    assert opened(root).version("demo", "champion").number == 1
    assert run("promote", "demo", 2, "--as", "champion", "--dir", root) == 0
    assert run("rollback", "demo", "--as", "champion", "--dir", root) == 0
    opened(root).checked(opened(root).version("demo", "champion"))
    assert [(each.before, each.after) for each in opened(root).history("demo")] == [(None, 1), (1, 2), (2, 1)]


@slow
def test_a_torn_database_is_said_and_left_alone(root: Path, tmp_path: Path) -> None:
    opened(root).add("demo", small(tmp_path / "one"), {})
    torn = (root / FILE).read_bytes()[:100_000]
    (root / FILE).write_bytes(torn)
    with pytest.raises(BackendError, match="failed"):
        opened(root).versions("demo")
    assert (root / FILE).read_bytes() == torn


def test_what_an_sqlite_uri_asks_for_is_no_part_of_the_files_name(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/registry.db?timeout=60"
    with pytest.raises(ValueError, match="there is no registry in"):
        MlflowBackend(uri, new=False)
    for new in (True, False):
        assert MlflowBackend(uri, new).names() == []
    assert [path.name for path in tmp_path.iterdir()] == ["registry.db"]
