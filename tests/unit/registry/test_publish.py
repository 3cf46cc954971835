"""Versions as artifacts of W&B: against a stand-in of what is used of its API, and the library itself offline."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat import cli
from pat.registry import mlflow_backend
from pat.registry.registry import Registry
from pat.registry.wandb_mirror import WandbMirror
from pat.run.directory import ExitCode
from tests import wandb_files
from tests.registry_files import FileBackend
from tests.unit.registry.test_registry import contents, small


class Wandb:
    """A server and the module that talks to it: an alias is of one artifact, and a logged one is there after `wait`."""

    def __init__(self) -> None:
        self.there: list[Any] = []
        self.logged = 0
        self.fails_at: int | None = None
        self.Settings = lambda **given: given
        self.Api = lambda overrides: SimpleNamespace(artifact=self.artifact, artifact_exists=self.exists)

    def Artifact(self, name: str, type: str, metadata: dict[str, str]) -> Any:  # noqa: N802
        made = SimpleNamespace(name=name, type=type, metadata=metadata, files={}, aliases=[])
        made.add_dir = lambda folder, policy: made.files.update(contents(Path(folder)))
        made.save = lambda: self.take(made)
        return made

    def init(self, **given: Any) -> Any:
        assert given["mode"] == "online" and given["project"] == "ours"
        self.logged += 1
        if self.logged == self.fails_at:
            raise RuntimeError("HTTP 502 from https://me:hunter2secret@api.wandb.ai\nand a page of HTML")

        def log(artifact: Any, aliases: list[str]) -> Any:
            artifact.aliases = list(aliases)
            return SimpleNamespace(wait=lambda: self.take(artifact))

        return SimpleNamespace(log_artifact=log, finish=lambda exit_code: None)

    def take(self, artifact: Any) -> None:
        for other in self.there:
            if other is not artifact:
                other.aliases = [each for each in other.aliases if each not in artifact.aliases]
        self.there += [artifact] if artifact not in self.there else []

    def artifact(self, path: str, type: str) -> Any:
        name, _, alias = path.partition(":")
        return next(each for each in self.there if each.name == name and alias in each.aliases)

    def exists(self, path: str, type: str) -> bool:
        name, _, alias = path.partition(":")
        return any(each.name == name and alias in each.aliases for each in self.there)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wandb]:
    made = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(mlflow_backend, "MlflowBackend", lambda uri, new: FileBackend(tmp_path / "backend.json"))
    yield made


def registered(root: Path) -> Registry:
    """Two versions of a name; the second is champion."""
    registry = Registry(root / "registry", lambda new: FileBackend(root / "backend.json"))
    for number in (1, 2):
        registry.add("reviews", small(root / str(number), number), {})
    registry.promote("reviews", "1", "champion")
    registry.promote("reviews", "2", "champion")
    return registry


def publish(root: Path, *arguments: str) -> int:
    given = ["registry", "publish", "reviews", *arguments, "--dir", str(root / "registry")]
    with pytest.raises(SystemExit) as stop:
        cli.main([*given, "--project", "ours"])
    return int(str(stop.value.code))


def test_versions_and_aliases_are_there_once(server: Wandb, tmp_path: Path) -> None:
    """Fails if the same again uploads a second time, or an alias stays where it was before a rollback."""
    registry = registered(tmp_path)
    assert publish(tmp_path) == publish(tmp_path) == 0
    assert [each.aliases for each in server.there] == [["pat-1"], ["pat-2", "champion"]] and server.logged == 2
    for number, artifact in enumerate(server.there, 1):
        assert artifact.files == contents(tmp_path / str(number)) and artifact.type == "model"
        assert artifact.metadata["pat.variant_sha256"] == registry.version("reviews", str(number)).variant_sha256
    registry.rollback("reviews", "champion")
    assert publish(tmp_path) == 0 and server.logged == 2
    assert [each.aliases for each in server.there] == [["pat-1", "champion"], ["pat-2"]]


def test_a_number_that_is_another_model_there_is_refused(server: Wandb, tmp_path: Path, capsys: Any) -> None:
    """As of a registry that was made anew. Would catch: `champion` of W&B set on what has only the number."""
    registered(tmp_path)
    assert publish(tmp_path) == 0
    server.there[0].metadata["pat.variant_sha256"] = "0" * 64
    before = [list(each.aliases) for each in server.there]
    assert publish(tmp_path) == ExitCode.BAD_INPUT and "reviews version 1 is there already, with other files" in (
        capsys.readouterr().err
    )
    assert [each.aliases for each in server.there] == before


def test_what_fails_in_the_middle_is_completed_by_the_same_again(server: Wandb, tmp_path: Path, capsys: Any) -> None:
    registered(tmp_path)
    server.fails_at = 2
    assert publish(tmp_path) == ExitCode.ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hunter2secret" not in said and "HTML" not in said
    assert [each.aliases for each in server.there] == [["pat-1"]], "no alias before all versions"
    assert publish(tmp_path) == 0 and server.logged == 3
    assert [each.aliases for each in server.there] == [["pat-1"], ["pat-2", "champion"]]


def test_what_is_damaged_or_offline_is_not_published(
    server: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registered(tmp_path)
    (registry.folder(registry.version("reviews", "2")) / "sub" / "note.txt").write_text("x")
    assert publish(tmp_path, "2") == ExitCode.BROKEN_PROMISE and not server.logged
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert publish(tmp_path, "1") == 2
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert publish(tmp_path, "1") == 2 and not server.logged


@pytest.mark.slow
def test_the_library_takes_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what `wandb sync` would send names every file by its hash."""
    folder = small(tmp_path / "one")
    mirror = WandbMirror("ours", mode="offline")
    plain = mirror._wandb.init

    def init(**given: Any) -> Any:
        return plain(**given | {"dir": str(tmp_path)})

    monkeypatch.setattr(mirror, "_wandb", SimpleNamespace(**{**vars(mirror._wandb), "init": init}))
    mirror.put("reviews", 3, folder, {"pat.sparsity": "0.5"})
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_files.ended_records(file)
    (artifact,) = [each.artifact for each in records if each.WhichOneof("record_type") == "artifact"]
    assert (artifact.name, artifact.type, set(artifact.aliases)) == ("reviews", "model", {"pat-3", "latest"})
    assert json.loads(artifact.metadata) == {"pat.sparsity": "0.5"}
    digests = {each.path: each.digest for each in artifact.manifest.contents}
    md5 = {name: base64.b64encode(hashlib.md5(data).digest()).decode() for name, data in contents(folder).items()}
    assert digests == md5
