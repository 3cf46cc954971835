"""`pat watch`: who has the address sees the page, and nobody anything else."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pat import cli
from pat.launch.process import Process, RankRecord
from pat.report import pictures
from pat.report.live import Live, Server
from tests import report_samples as samples


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Path, list[float]]]:
    """(the server, the run that it shows, its clock)."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    run, now = samples.run(tmp_path / "run", done=False), [0.0]
    with Server(Live([run], 10, lambda: now[0])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server, run, now
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, answer.headers


def test_only_its_address_and_only_reading(served: tuple[Server, Path, list[float]]) -> None:
    server, _, _ = served
    assert server.address.startswith("http://127.0.0.1:") and len(server.path) > 30
    for path in ("/", "/index.html", server.path[:-1], server.path + "../run/config.yaml", "//etc/passwd", "/%2e%2e/"):
        assert ask(server, path)[:2] == (404, "There is nothing here.")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, server.path, method)[0] == 501
    status, body, headers = ask(server, server.path)
    assert status == 200 and "<!doctype html>" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    assert ask(server, server.path, "HEAD")[1] == "" and server.path not in body


def test_it_follows_the_run_and_stops_when_that_has_ended(served: tuple[Server, Path, list[float]]) -> None:
    server, run, now = served
    again = '<meta http-equiv="refresh" content="10">'
    first = ask(server, server.path)[1]
    assert again in first and "logged step 60 of 60" in first
    with open(run / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps({"step": 99, "train/loss": 0.1}) + "\n")
    assert ask(server, server.path)[1] == first, "not made again for every reader"
    now[0] = 11.0
    assert "logged step 99 of 60" in ask(server, server.path)[1]
    (run / "config.yaml").rename(run / "away")
    now[0] = 22.0
    assert "logged step 99 of 60" in ask(server, server.path)[1], "the page before, while a file is missing"
    (run / "away").rename(run / "config.yaml")
    (run / "exit.json").write_text('{"code": 85, "meaning": "preempted", "message": ""}')
    now[0] = 33.0
    between = ask(server, server.path)[1]
    assert again in between and "Preempted" in between, "it will go on, and the page with it"
    (run / "exit.json").write_text('{"code": 3, "meaning": "diverged", "message": "the loss is inf"}')
    now[0] = 44.0
    last = ask(server, server.path)[1]
    assert "refresh" not in last and "the loss is inf" in last


def test_a_sweep_is_followed_until_its_runs_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    folder = samples.sweep(tmp_path / "s")
    assert b"refresh" not in Live([folder], 5).page()
    content = json.loads((folder / "sweep.json").read_text())
    content["members"][-1]["code"] = None
    (folder / "sweep.json").write_text(json.dumps(content))
    assert b'<meta http-equiv="refresh" content="5">' in Live([folder], 5).page()


def test_a_run_that_runs_and_one_that_died(served: tuple[Server, Path, list[float]]) -> None:
    """By the processes of its ranks, as pat status says."""
    server, run, now = served
    assert "Died" in ask(server, server.path)[1]
    this = Process.of(os.getpid())
    assert this is not None
    (run / "ranks").mkdir()
    RankRecord(0, this).write(run)
    now[0] = 11.0
    assert "Running: run" in ask(server, server.path)[1]


def test_the_command_serves_this_machine_only_until_ctrl_c(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    plain = Server.serve_forever

    def until_ctrl_c(server: Server) -> None:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        thread = threading.Thread(target=plain, args=(server, 0.01), daemon=True)
        thread.start()
        assert capsys.readouterr().out == f"open {server.address}\nCtrl-C ends it\n"
        assert ask(server, server.path)[0] == 200
        server.shutdown()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", until_ctrl_c)
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(samples.run(tmp_path / "run", done=False))])
    assert not stop.value.code


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["no"], "there is no no"),
        (["{run}", "--every", "0"], "give 1 second or more"),
        (["{run}", "--port", "70000"], "give 0 to 65535"),
        (["{run}", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_mistakes(given: list[str], sentence: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    run = samples.run(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", *(word.format(run=run) for word in given)])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
