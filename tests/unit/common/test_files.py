"""Files that are replaced, put back, or no files at all."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

import pat
from pat.commands import _models
from pat.common import files
from pat.common.files import check_writable, put_back, write_atomic, write_summary

WRITTEN = {
    "files.write_json",
    "files.write_atomic",
    "files.write_summary",
    "_models.write_json",
    "write_json",
    "_write",
}
TOLD = {"_models.show", "console.print", "print", "_print"}


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    for content in ("1", "2"):  # a new file, and one that is there
        check_writable(tmp_path / "link.json", "--json")
        write_atomic(tmp_path / "link.json", content)
        assert (tmp_path / "link.json").is_symlink() and (tmp_path / "file.json").read_text() == content


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """Fails if figures of hours are lost, as their file cannot be made."""
    (tmp_path / "link.json").symlink_to(tmp_path / "gone" / "file.json")
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path / 'gone'}; make it"):
        check_writable(tmp_path / "link.json", "--json")
    most = 255 - len(f"..{os.getpid()}.tmp")
    longest = tmp_path / ("n" * most)
    check_writable(longest, "--json")
    write_atomic(longest, "1")
    for more in (1, 250 - most, 300):
        path = tmp_path / ("n" * (most + more))
        with pytest.raises(ValueError, match=f"^--json: the name n+... is too long: make it {more} bytes shorter$"):
            check_writable(path, "--json")
        with pytest.raises(OSError, match="too long"):
            write_atomic(path, "1")
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["l", "n"]


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    """Would catch a regular file that takes the place of /dev/null or of a process's input."""
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_writable(pipe, "--json")
    write_atomic(pipe, "content")
    reader.join(10)
    assert read == ["content"] and pipe.is_fifo()


def test_the_summary_of_a_github_job_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if what the steps before said is gone."""
    summary, other = tmp_path / "summary.md", tmp_path / "other.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for path in (summary, other):
        path.write_text("before\n")
        write_summary(path, "gate\n")
    assert (summary.read_text(), other.read_text()) == ("before\ngate\n", "gate\n")


def test_an_exception_puts_files_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("1")
    with pytest.raises(RuntimeError), put_back(old, new):
        old.unlink()
        new.write_text("2")
        raise RuntimeError
    assert old.read_text() == "1" and new.exists(), "of a new file nothing is known"
    with put_back(old):
        old.write_text("3")
    assert old.read_text() == "3"


def test_what_is_written_to_stdout_keeps_its_place(tmp_path: Path) -> None:
    """Opened by name, a file to which it leads would have a position of its own, and lines would overwrite it."""
    code = "from pat.common.files import write_atomic; print('a'); write_atomic('/dev/stdout', 'b\\n'); print('c')"
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"


def test_every_file_of_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.readlink(f"/proc/self/fd/{handle}")))
    (tmp_path / "a").mkdir()
    for name in ("x", "a/y"):
        (tmp_path / name).write_text("1")
    files.sync_tree(tmp_path)
    assert synced == {str(tmp_path), *(str(tmp_path / name) for name in ("a", "x", "a/y"))}


def test_figures_that_took_long_are_shown_though_a_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a full disk takes the figures of hours along: they are shown in the `finally` of what writes them."""
    options = argparse.Namespace(json=tmp_path / "nowhere" / "f.json", typed=["pat"])
    with pytest.raises(OSError):
        _models.say(options, {}, ["the figures"])
    assert "the figures" in capsys.readouterr().out
    late, seen = list[str](), 0
    for name in ("compare", "evaluate", "gate", "monitor", "profile"):
        tree = ast.parse(Path(pat.__path__[0], "commands", f"{name}.py").read_text())
        tries = [each for each in ast.walk(tree) if isinstance(each, ast.Try)]
        safe = {
            id(call) for each in tries if _calls(each.finalbody, TOLD) for call in _calls(each.body, WRITTEN)
        }  # fmt: skip
        written = _calls([tree], WRITTEN)
        seen += len(written)
        late += [f"{name}.py, line {call.lineno}" for call in written if id(call) not in safe]
    assert seen >= 9 and not late, (seen, late)


def _calls(parts: Sequence[ast.AST], names: set[str]) -> list[ast.Call]:
    return [
        each
        for part in parts
        for each in ast.walk(part)
        if isinstance(each, ast.Call) and ast.unparse(each.func) in names
    ]


def test_commands_write_their_files_before_they_print() -> None:
    """Fails if `pat COMMAND --json FILE | head` ends without FILE, as the pipe is closed when it would be written."""
    late, seen = list[str](), 0
    for path in (file for name in ("commands", "doctor") for file in Path(pat.__path__[0], name).glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [each for each in ast.walk(function) if isinstance(each, ast.Call)]
                places = [[c.lineno for c in calls if ast.unparse(c.func) in names] for names in (WRITTEN, TOLD)]
                written, told = map(max, places) if all(places) else (0, 0)  # the last: a check may tell what it found
                seen += bool(written)
                late += [f"{path.name}: {function.name}"] * (written > told)
    assert seen >= 14 and not late, (seen, late)


def test_without_a_home_directory_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number nobody has."""
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    with pytest.raises(ValueError, match="set PAT_CACHE to a folder"):
        files.cache(None)


def test_text_is_utf8_whatever_the_locale(repository: Path) -> None:
    """Would catch: what pat has written as UTF-8, read in the encoding of a cluster's old locale."""
    left = [
        f"{path.name}:{call.lineno}"
        for path in (repository / "pat").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "read_text"
        if not any(each.arg == "encoding" for each in call.keywords)
    ]
    assert not left
