"""Versions, aliases and masks, on a backend that is one file: with kills at every moment and promotions at once."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from pat import cli
from pat.common import partial
from pat.common.hashing import WeightsHash
from pat.envelope.guard import Record, in_short
from pat.evaluation.folders import weights_sha256 as stored_weights_sha256
from pat.export.export import export_run
from pat.models.tokenizers import byte_tokenizer
from pat.models.weight_files import weights_sha256
from pat.registry import gates, maskdiff, mlflow_backend, report, store, variant
from pat.registry.backend import BackendError
from pat.registry.gates import RefusedError
from pat.registry.registry import Registry
from pat.registry.store import DamagedError
from pat.registry.verify import verify
from pat.run import provenance
from tests.fake_run import FakeCheckpoint, write_run
from tests.registry_files import FileBackend, in_process, killed_at, killed_everywhere, start

LLAMA = LlamaConfig(
    vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, pad_token_id=256,
)  # fmt: skip
Exports = tuple[Path, list[FakeCheckpoint]]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Two exports of one run, `10` and `20`, whose masks differ, and what they were made of."""
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(1)
    saved = write_run(folder / "run", LlamaForCausalLM(LLAMA), byte_tokenizer(), "causal_lm", ranks=1)
    for step in (10, 20):
        export_run(folder / "run", folder / str(step), checkpoint=step, verify="weights")
    return folder, saved


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return opened(tmp_path / "registry")


def opened(root: Path) -> Registry:
    return Registry(root, lambda new: FileBackend(root / "backend.json"))


def small(folder: Path, value: float = 1.0) -> Path:
    """A folder that looks like a model's, and takes no time."""
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "note.txt").write_text(str(value))
    save_file({"w": torch.full((3,), value)}, folder / "model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    """Change one bit in the middle of the data."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def test_a_version_is_what_was_added(registry: Registry, exports: Exports, tmp_path: Path) -> None:
    folder = exports[0] / "20"
    version, new = registry.add("demo", folder, {"metrics": {"loss": 1.5}})
    assert new and version.number == 1
    assert registry.add("demo", folder, {"metrics": {"loss": 1.5}})[1] is False, "the same again is the same version"
    registry.get(version, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)

    exported, origin = json.loads((folder / "export.json").read_text()), version.record["lineage"]
    assert origin["config"]["sha256"] == exported["lineage"]["config_sha256"]
    assert origin["masks"]["sha256"] == exported["mask_sha256"]
    stored = WeightsHash()
    for name, weight in sorted(load_file(folder / "model.safetensors").items()):
        stored.update(name, weight)
    assert origin["weights"] == {
        "trained_sha256": exported["weights_sha256"], "files_sha256": weights_sha256(folder),
        "stored_sha256": stored.hexdigest(),
    }  # fmt: skip
    assert version.record["figures"]["metrics"] == {"loss": 1.5} and origin["run"]["step"] == 20
    checks = verify(registry.folder(version), version.record)
    assert {check.name: check.passed for check in checks} == dict.fromkeys(
        ("files", "load", "zeros", "count", "logits"), True
    )


def test_what_the_run_knows_of_its_base_and_data_comes_along(
    exports: Exports, registry: Registry, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(exports[0] / "run", run)
    manifest = run / "checkpoints" / "step-00000020" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["trainer"] |= {"base": {"path": "/m", "sha256": "ab"}, "data": [["cd", 7]], "teacher": {"sha256": "ef"}}
    manifest.write_text(json.dumps(content))
    trained = {"pat": "0.1.0", "git": "12", "code": "34"}
    (run / "version.json").write_text(json.dumps(trained))
    export_run(run, tmp_path / "out", checkpoint=20, verify="weights")
    origin = registry.add("demo", tmp_path / "out", {})[0].record["lineage"]
    assert origin["base_model"]["sha256"] == "ab" and origin["teacher"] == {"sha256": "ef"}
    assert origin["data"] == {"source": "generated", "samples": [["cd", 7]]}
    assert origin["code"] == {"trained": trained, "exported": provenance.versions()}
    assert len(origin["code"]["exported"]["code"]) == 64, "the sources as they were, whatever the commit says"
    assert "ab" in (tmp_path / "out" / "README.md").read_text()


def test_a_safetensors_file_may_begin_as_a_pickle_does(registry: Registry, tmp_path: Path) -> None:
    """Its first bytes are the length of its header: 640 is what protocol 2 begins with."""
    folder = small(tmp_path / "variant")
    for n in range(64):
        tensors = {f"{i:0{6 + n // 8}}": torch.zeros(1) for i in range(10)}
        save_file(tensors, folder / "more.safetensors", {"format": "pt", "n": "x" * n})
        if (folder / "more.safetensors").read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            break
    else:
        pytest.fail("no header of such a length")
    registry.add("demo", folder, {})


def test_a_folder_with_other_weights_below_or_beside_its_own_has_the_gates_hash_and_size(
    registry: Registry, tmp_path: Path
) -> None:
    """Fails if the gate and the registry count different files, so that a version can never be added with its gate."""
    folder = small(tmp_path / "variant")
    gate = {"passed": True, "variant": {"weights_sha256": stored_weights_sha256(folder)}}
    for place in ("original/model.safetensors", "consolidated.safetensors"):
        (folder / place).parent.mkdir(exist_ok=True)
        save_file({"v": torch.ones(2)}, folder / place)
    version, _ = registry.add("demo", folder, {"gate": gate})
    assert version.record["figures"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert set(version.record["files"]) >= {"original/model.safetensors", "consolidated.safetensors"}
    assert registry.promote("demo", "1", "champion").gate.startswith("passed ")


def link(target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "linked.json").symlink_to(target)


STRANGE = ("training_args.bin", "weights.BIN", "modeling.PY", "extra.tar.gz", "evil.dat", "evil", "evil.py.v3")


def named(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def index(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(content)


def archive(kind: str) -> Callable[[Path], object]:
    """The folder itself as an archive that is called a text."""

    def make(folder: Path) -> None:
        made = shutil.make_archive(str(folder.parent / "made"), kind, folder)
        shutil.move(made, folder / "note.txt")

    return make


def test_what_tokenizers_and_cards_are_made_of_is_kept(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "variant")
    names = (
        "merges.txt",
        "spiece.model",
        "tokenizer.model.v3",
        "bpe.codes",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
        "a/qwen.tiktoken",
    )
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\n\x0e\n\x05<unk>")
    version, _ = registry.add("demo", folder, {})
    assert set(names) < set(version.record["files"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((named(name), "no kind that the registry keeps") for name in STRANGE),
        (lambda folder: torch.save({}, folder / "note.txt"), "by its first bytes"),
        *((archive(kind), "by its first bytes") for kind in ("gztar", "bztar", "xztar", "tar", "zip")),
        (lambda folder: torch.save({}, folder / "more.safetensors"), "by its first bytes"),
        (link("/etc/hostname"), "link out of its folder"),
        (link("../outside.json"), "link out of its folder"),
        (lambda folder: os.mkfifo(folder / "pipe"), "plain file"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 70), "variant/model.safetensors is not a whole"),
        (lambda folder: (folder / "export.json").write_text('{"files"'), "variant/export.json is not readable"),
        (index("{}"), "variant/model.safetensors.index.json is not a readable index"),
        (lambda folder: (folder / "export.json").write_text('{"files": {"gone": {"sha256": "0"}}}'), "is missing"),
        (
            lambda folder: (folder / "export.json").write_text('{"files": {"model.safetensors": {"sha256": "0"}}}'),
            "not what was exported",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(damage: Callable[[Path], object], words: str, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    folder = small(tmp_path / "variant")
    damage(folder)
    with pytest.raises(ValueError, match=words) as refused:
        registry.add("demo", folder, {})
    assert "adding" not in str(refused.value), "a copy that is gone when this is read"
    left = [path for path in (tmp_path / "registry").rglob("*") if path.name not in (".lock", "adding")]
    assert left == [], "nothing of it stays"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "it holds no mapping"),
        ({"files": {"model.safetensors": {}}}, "files has no sha256 of model.safetensors"),
        ({"files": {"model.safetensors": "0"}}, "files has no sha256 of model.safetensors"),
        ({"lineage": {"data": [["train", "many"]]}}, "lineage.data is [['train', 'many']]"),
        *(
            (functools.reduce(lambda inner, part: {part: inner}, reversed(field.split(".")), wrong), f"{field} is ")
            for field in variant.FIELDS
            for wrong in (True, [1])
            if not isinstance(wrong, variant.FIELDS[field])
        ),
    ],
)
def test_an_export_json_of_another_form_is_refused(content: Any, said: str, registry: Registry, tmp_path: Path) -> None:
    """Fails if a field that someone else wrote ends the command with a traceback."""
    folder = small(tmp_path / "variant")
    (folder / "export.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"export.json is not what `pat export` writes, as {said}")):
        registry.add("demo", folder, {})


def test_fields_of_an_export_json_may_be_null(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "variant")
    for content in (
        dict.fromkeys(variant.FIELDS),
        {"lineage": {"metrics": None, "data": None}, "config": {"data": None}},
    ):
        (folder / "export.json").write_text(json.dumps(content))
        version, _ = registry.add("demo", folder, {})
        Console(file=io.StringIO()).print(report.version_table(version), report.versions_table("demo", [version]))


def test_a_hub_models_cache_is_a_folder_of_links_into_its_blobs(registry: Registry, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    made = small(tmp_path / "made")
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(made / name, blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    version, _ = registry.add("demo", snapshot, {})
    kept = registry.folder(version) / "model.safetensors"
    assert not kept.is_symlink() and kept.read_bytes() == (made / "model.safetensors").read_bytes()


def test_a_folder_that_was_there_is_filled_and_stays(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    """Fails for a link, for the current folder, and for a mount point, which cannot be replaced."""
    version, _ = registry.add("demo", small(tmp_path / "variant"), {})
    want, here = contents(tmp_path / "variant"), tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    before = here.stat().st_ino
    registry.get(version, tmp_path / "link")
    assert contents(here) == want and (tmp_path / "link").is_symlink() and here.stat().st_ino == before
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    registry.get(version, Path("."))
    assert contents(tmp_path / "current") == want
    assert sorted(path.name for path in (tmp_path / "current").iterdir()) == ["config.json", "model.safetensors", "sub"]


@pytest.mark.parametrize("new", [True, False])
def test_a_kill_at_any_moment_of_a_get_leaves_no_folder_that_looks_whole(
    new: bool, registry: Registry, tmp_path: Path
) -> None:
    """Fails if config.json is there before the weights, or if a damaged file leaves some of the others."""
    version, _ = registry.add("demo", small(tmp_path / "variant"), {})
    want, outs = contents(tmp_path / "variant"), [tmp_path / f"out{i}" for i in range(99)]
    if not new:
        for out in outs:
            out.mkdir()

    def check() -> None:
        there = contents(outs.pop(0))
        assert "config.json" not in there or {name: there.get(name) for name in want} == want, there.keys()

    assert killed_everywhere(lambda: registry.get(version, outs[0]), check) > 5
    assert contents(outs[0]) == want
    flip(registry.folder(version) / "model.safetensors")
    with pytest.raises(DamagedError):
        registry.get(version, outs[1])
    assert outs[1].exists() is not new and not contents(outs[1])


def test_rollback_goes_back_one_promotion_at_a_time(registry: Registry, tmp_path: Path) -> None:
    folders = [small(tmp_path / str(n), n) for n in (1, 2, 3)]
    for n, folder in enumerate(folders, 1):
        registry.add("demo", folder, {})
        registry.promote("demo", str(n), "champion", f"because {n}")
    assert registry.promote("demo", "3", "champion").number == 3, "it is there already: nothing moves"
    registry.promote("demo", "1", "canary")
    for expected in (2, 1):
        assert registry.rollback("demo", "champion").after == expected
        registry.get(registry.version("demo", "champion"), tmp_path / f"out{expected}")
        assert contents(tmp_path / f"out{expected}") == contents(folders[expected - 1])
    with pytest.raises(ValueError, match="stood for nothing before version 1"):
        registry.rollback("demo", "champion")
    registry.promote("demo", "3", "champion")
    assert registry.rollback("demo", "champion").after == 1
    assert registry.version("demo", "canary").number == 1
    moved = [(each.kind, each.before, each.after) for each in registry.history("demo") if each.alias == "champion"]
    assert moved == [
        ("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 2), ("rollback", 2, 1),
        ("promote", 1, 3), ("rollback", 3, 1),
    ]  # fmt: skip
    assert [each.reason for each in registry.history("demo")][:2] == ["because 1", "because 2"]


def test_what_an_envelope_allowed_in_training_is_on_record(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "one")
    led = in_short(Record(asked=0.8, good={"step": 30, "sparsity": 0.6}, holds=2, stopped="outside"))
    (folder / "export.json").write_text(json.dumps({"lineage": {"envelope": led}}))
    version, _ = registry.add("demo", folder, {})
    assert version.record["lineage"]["envelope"] == led
    shown = io.StringIO()
    Console(file=shown, width=200).print(report.version_table(version))
    assert "60.00% is allowed of the 80.00% asked for, after 2 holds" in shown.getvalue()


def test_an_alias_that_was_moved_elsewhere_is_noted_before_it_moves_again(registry: Registry, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        registry.add("demo", small(tmp_path / str(n), n), {})
    registry.promote("demo", "1", "champion")
    FileBackend(registry.root / "backend.json").set_alias("demo", "champion", 2)
    registry.promote("demo", "3", "champion")
    assert [(each.kind, each.after) for each in registry.history("demo")] == [
        ("promote", 1), ("outside", 2), ("promote", 3),
    ]  # fmt: skip
    assert registry.rollback("demo", "champion").after == 2


def test_an_alias_that_was_set_elsewhere_is_promoted_where_it_is(registry: Registry, tmp_path: Path) -> None:
    """With reason and gate in the history; and a rollback goes to what stood there before it was set."""
    for n in (1, 2):
        registry.add("demo", small(tmp_path / str(n), n), {})
    registry.promote("demo", "1", "champion")
    FileBackend(registry.root / "backend.json").set_alias("demo", "champion", 2)
    for _ in range(2):
        moved = registry.promote("demo", "2", "champion", "seen to be better")
        assert (moved.kind, moved.before, moved.after, moved.reason) == ("promote", 2, 2, "seen to be better")
    assert [each.kind for each in registry.history("demo")] == ["promote", "outside", "promote"]
    assert registry.rollback("demo", "champion").after == 1


def test_a_stopped_move_is_dropped_where_the_alias_was_moved_elsewhere_since(
    registry: Registry, tmp_path: Path
) -> None:
    """Fails if reading the history moves the champion back over a move that was made on MLflow's page."""
    for n in (1, 2, 3):
        registry.add("demo", small(tmp_path / str(n), n), {})
    registry.promote("demo", "1", "champion")
    backend = FileBackend(registry.root / "backend.json")
    stopped = dataclasses.replace(registry.history("demo")[0], number=2, before=1, after=2)
    backend.note("demo", "pat.pending.champion", json.dumps(dataclasses.asdict(stopped)))
    backend.set_alias("demo", "champion", 3)
    assert [each.after for each in registry.history("demo")] == [1]
    assert backend.aliases("demo") == {"champion": 3} and "pat.pending.champion" not in backend.notes("demo")
    registry.promote("demo", "1", "champion")
    assert [(each.kind, each.after) for each in registry.history("demo")][1:] == [("outside", 3), ("promote", 1)]


def profile_of(hashes: list[str]) -> dict[str, Any]:
    return {"models": [{"folder": "x", "latency_p95": 0.1, "weights_sha256": sha256} for sha256 in hashes]}


def test_a_gate_decides(registry: Registry, exports: Exports, tmp_path: Path) -> None:
    version, _ = registry.add("demo", exports[0] / "20", {})
    weights = version.record["lineage"]["weights"]
    ours, trained = weights["stored_sha256"], weights["trained_sha256"]
    other = json.loads((exports[0] / "10" / "export.json").read_text())["weights_sha256"]
    failing = [{"name": "latency_p95", "passed": False}, {"name": "accuracy", "passed": True}]

    def promote(gate: dict[str, Any]) -> Any:
        return registry.promote("demo", "1", "champion", gate=gate)

    for gate, words in (
        ({"passed": False, "checks": failing, "variant": {"weights_sha256": ours}}, "gate: latency_p95; promote"),
        ({"passed": True, "variant": {"weights_sha256": other}}, "of other weights"),
        ({"passed": True, "variant": {"weights_sha256": trained}}, "of other weights"),  # before it was narrowed
    ):
        with pytest.raises(RefusedError, match=words):
            promote(gate)
    for gate in ({}, {"passed": "yes"}, {"passed": 1}):
        with pytest.raises(ValueError, match="does not say whether"):
            promote(gate)
    with pytest.raises(RefusedError, match="of other weights"):
        registry.add("demo", exports[0] / "20", {"gate": {"passed": True, "variant": {"weights_sha256": other}}})
    for said in ([other], [other, trained]):
        with pytest.raises(RefusedError, match="what `pat profile` measured is of other weights"):
            registry.add("demo", exports[0] / "20", {"profile": profile_of(said)})
    with pytest.raises(RefusedError, match="what `pat evaluate` measured is of other weights"):
        registry.add("demo", exports[0] / "20", {"metrics": profile_of([other])})
    registry.add("demo", exports[0] / "20", {"gate": {"passed": False}})
    for asked in (None, {"passed": True, "variant": {"weights_sha256": ours}}):  # a weaker gate, asked afterwards
        with pytest.raises(RefusedError, match="did not pass.*add them as a new version"):
            registry.promote("demo", "2", "champion", gate=asked)
    assert registry.history("demo") == []
    for which, alias in (("files", "champion"), ("stored", "canary")):
        gate = {"passed": True, "variant": {"weights_sha256": weights[f"{which}_sha256"]}}
        assert registry.promote("demo", "1", alias, gate=gate).gate.startswith("passed ")
    for said in ([other, ours], [other, ""], []):  # of two models, of an older pat profile, of another tool
        assert registry.add("demo", exports[0] / "20", {"profile": profile_of(said)})[1]
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="no JSON mapping"):
        gates.read(tmp_path / "list.json", "--gate", "pat gate")
    (tmp_path / "list.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not readable as JSON"):
        gates.read(tmp_path / "list.json", "--gate", "pat gate")


def test_metrics_and_a_profile_are_what_their_commands_wrote(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Fails if a version's page has another command's figures, or none, where its own belong."""
    monkeypatch.setattr(mlflow_backend, "MlflowBackend", lambda uri, new: FileBackend(tmp_path / "backend.json"))
    folder, where = small(tmp_path / "variant"), ["--dir", str(tmp_path / "registry")]
    evaluation, profile, junk = ({"models": [{"folder": "x", **one}]} for one in (
        {"metrics": {"loss": 1.0}, "tokens_per_s": 9.0}, {"latency_p95": 0.1}, {"seconds": 1.0}))  # fmt: skip

    def add(option: str, content: Any) -> tuple[int, str]:
        (tmp_path / "given.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit) as stop:
            cli.main(["registry", "add", "demo", str(folder), option, str(tmp_path / "given.json"), *where])
        return int(str(stop.value.code)), capsys.readouterr().err

    assert add("--metrics", evaluation) == add("--profile", profile) == (0, "")
    for option, content, said in (
        ("--metrics", profile, "is what `pat profile --json` wrote: give what `pat evaluate --json` wrote"),
        ("--profile", evaluation, "is what `pat evaluate --json` wrote: give what `pat profile --json` wrote"),
        ("--metrics", {"outcomes": []}, "is what `pat compare --json` wrote"),
        ("--profile", junk, "holds no figures of a model: give what `pat profile --json` wrote"),
    ):
        code, sentence = add(option, content)
        assert code == 2 and said in sentence


def test_what_was_changed_is_refused_until_it_is_added_again(
    registry: Registry, exports: Exports, tmp_path: Path
) -> None:
    for step in ("10", "20"):
        registry.add("demo", exports[0] / step, {})
        registry.promote("demo", "1" if step == "10" else "2", "champion")
    first = registry.version("demo", "1")
    (registry.folder(first) / "templates").symlink_to(tmp_path)
    assert store.faults(registry.folder(first), first.record["files"]) == ["templates is there and was not added"]
    (registry.folder(first) / "templates").unlink()
    flip(registry.folder(first) / "model.safetensors")
    for refused in (
        lambda: registry.promote("demo", "1", "canary"),
        lambda: registry.rollback("demo", "champion"),
        lambda: registry.get(first, tmp_path / "out"),
    ):
        with pytest.raises(DamagedError, match=r"model.safetensors"):
            refused()
    assert registry.version("demo", "champion").number == 2 and not (tmp_path / "out").exists()
    (check,) = found = verify(registry.folder(first), first.record)
    assert not check.passed and "another sha256" in check.said
    assert report.outcome(first, found).endswith("files are not as they were added; add the variant again to repair it")
    (registry.folder(first) / "more.txt").write_text("")
    assert "was not added" in verify(registry.folder(first), first.record)[0].said
    registry.add("demo", exports[0] / "10", {})
    assert registry.rollback("demo", "champion").after == 1
    assert contents(registry.folder(first)) == contents(exports[0] / "10")

    record = registry.root / "records"
    for file in record.iterdir():
        file.write_text(file.read_text().replace('"seed"', '"Seed"'))
    with pytest.raises(DamagedError, match="was changed"):
        registry.version("demo", "1")


def test_a_record_cannot_name_files_outside(registry: Registry) -> None:
    registry.root.mkdir()
    for name in ("../../etc/passwd", "/etc/passwd", "a/../../b"):
        sha256 = registry.store.record({"files": {name: {"sha256": "0", "bytes": 1}}})
        with pytest.raises(DamagedError, match="out of its folder"):
            registry.store.recorded(sha256)
    with pytest.raises(DamagedError, match="sha256"):
        registry.store.variant("../../etc")


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda w: w["model.layers.0.mlp.up_proj.weight"].fill_(1.0), "zeros"),
        (lambda w: w["model.norm.weight"].fill_(float("nan")), "logits"),
        (lambda w: w.pop("model.norm.weight"), "load"),
    ],
)
def test_verify_loads_and_looks(
    change: Callable[[dict[str, torch.Tensor]], object],
    failed: str,
    registry: Registry,
    exports: Exports,
    tmp_path: Path,
) -> None:
    """Of folders whose hashes are right, for nobody vouched for what is in them."""
    folder = tmp_path / "variant"
    shutil.copytree(exports[0] / "20", folder)
    (folder / "export.json").unlink()
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    version, _ = registry.add("demo", folder, {})
    checks = verify(registry.folder(version), version.record)
    assert [check.name for check in checks if not check.passed] == [failed]
    said = report.outcome(version, checks)
    assert said.startswith(f"demo version 1 failed {failed}: its {len(version.record['files'])} files are as they were")


def test_verify_tells_a_library_that_computes_another_model(
    exports: Exports, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are what they were, so only the logits that the export recorded can tell."""
    folder = tmp_path / "variant"
    exported = export_run(exports[0] / "run", folder, checkpoint=20, verify="logits")
    version, _ = registry.add("demo", folder, {})

    def said() -> tuple[bool, str]:
        check = verify(registry.folder(version), version.record)[-1]
        return check.passed, check.said

    assert said() == (True, "(4, 32, 320), as the export recorded: at most 0.0e+00 apart")
    whole = report.outcome(version, verify(registry.folder(version), version.record))
    assert whole.startswith(f"demo version 1 is whole: its {len(version.record['files'])} files")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, where = torch.tensor(exported["logits"]["ids"]), torch.tensor(exported["logits"]["classes"])
    expected = model(ids).logits[:, -1].sort(descending=True)
    assert torch.equal(where, expected.indices[:, :8])
    torch.testing.assert_close(torch.tensor(exported["logits"]["values"]), expected.values[:, :8], atol=1e-5, rtol=0)

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.down_proj(self.up_proj(x)))
    passed, reason = said()
    assert not passed and "from those of the export" in reason and "another model from the same files" in reason
    export = json.loads((folder / "export.json").read_text())
    whole = export["logits"]
    for damaged in ({"ids": [[1, 2]]}, {**whole, "classes": [[0]]}, {**whole, "ids": [[999] * 4]}):
        (folder / "export.json").write_text(json.dumps({**export, "logits": damaged}))
        version, _ = registry.add("demo", folder, {})
        assert said()[0] is False and "cannot be compared" in said()[1]


def test_masks_differ_as_the_checkpoints_do(exports: Exports) -> None:
    folder, saved = exports
    rows = {row.name: row for row in maskdiff.diff(folder / "10", folder / "20")}
    a, b = (one.keep for one in saved)
    assert rows.keys() == a.keys()
    for name, row in rows.items():
        x, y = a[name].bool(), b[name].bool()
        counts = (row.total, row.both, row.only_a, row.only_b, row.kept_a, row.kept_b)
        pairs = (~x & ~y, ~x & y, x & ~y, x, y)
        assert counts == (len(x), *(int(each.sum()) for each in pairs)) and row.only_a > 0
    layers = maskdiff.by_layer(list(rows.values()))
    assert [row.name for row in layers] == ["layer 0", "layer 1"]
    assert layers[1].only_b == sum(row.only_b for name, row in rows.items() if ".layers.1." in name)
    parts = {row.part: row for row in maskdiff.by_part(list(rows.values()))}
    assert parts["mlp.down_proj.weight"].both == sum(row.both for n, row in rows.items() if "down_proj" in n)
    same = maskdiff.diff(folder / "10", folder / "10")
    assert all(row.only_a == row.only_b == 0 for row in same)


def test_units_and_what_only_one_version_has(tmp_path: Path) -> None:
    from pat.common.hashing import pack_keep

    def write(folder: Path, flags: dict[str, list[int]]) -> Path:
        folder.mkdir()
        packed = {name: torch.from_numpy(pack_keep(torch.tensor(keep))) for name, keep in flags.items()}
        shapes = json.dumps({name: [len(keep)] for name, keep in flags.items()})
        save_file(packed, folder / "masks.safetensors", metadata={"shapes": shapes})
        return folder

    a = write(tmp_path / "a", {"ffn:h.1.mlp": [1, 0, 0], "ffn:h.10.mlp": [0, 1], "kv_groups:h.1.attn": [1, 1]})
    b = write(tmp_path / "b", {"ffn:h.1.mlp": [0, 0, 1], "kv_groups:h.1.attn": [1, 0, 0]})
    rows = maskdiff.diff(a, b)
    found = {row.name: (row.layer, row.part, row.both, row.only_a, row.only_b, row.kept_b) for row in rows}
    assert found == {
        "ffn:h.1.mlp": (1, "ffn", 1, 1, 1, 1), "ffn:h.10.mlp": (10, "ffn", 0, 1, 0, 2),
        "kv_groups:h.1.attn": (1, "kv_groups", 0, 0, 0, 0),
    }  # fmt: skip
    (tmp_path / "dense").mkdir()
    assert [row.only_a for row in maskdiff.diff(a, tmp_path / "dense")] == [2, 1, 0]


def test_a_kill_at_any_moment_of_an_add_loses_and_doubles_nothing(registry: Registry, tmp_path: Path) -> None:
    """Fails if a version is there before its files are, or if what a kill leaves stands in the way."""
    first, second = small(tmp_path / "first", 1), small(tmp_path / "second", 2)
    registry.add("demo", first, {})

    def check() -> None:
        for version in opened(registry.root).versions("demo"):
            assert not store.faults(registry.folder(version), version.record["files"])
            assert version.number in (1, 2)

    kills = killed_everywhere(lambda: opened(registry.root).add("demo", second, {}), check)
    assert kills > 10
    versions = opened(registry.root).versions("demo")
    assert [version.number for version in versions] == [1, 2]
    assert contents(registry.folder(versions[1])) == contents(second)
    assert len(list((registry.root / "variants").iterdir())) == 2 and not list((registry.root / "adding").iterdir())


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_move_leaves_it_undone_or_done_once(registry: Registry, tmp_path: Path) -> None:
    """Fails if an alias moves without a note, or a rollback that is repeated after a kill goes back twice."""
    for n in (1, 2, 3):
        registry.add("demo", small(tmp_path / str(n), n), {})
    registry.promote("demo", "1", "champion")
    registry.promote("demo", "2", "champion")
    file = registry.root / "backend.json"

    def check() -> None:
        assert FileBackend(file).aliases("demo")["champion"] in (2, 3)

    kills = killed_everywhere(lambda: opened(registry.root).promote("demo", "3", "champion"), check)
    assert kills > 6
    three = [(None, 1), (1, 2), (2, 3)]
    assert [(each.before, each.after) for each in registry.history("demo")] == three

    before, moment = file.read_bytes(), 0
    while True:
        file.write_bytes(before)

        def one(moment: int = moment) -> None:
            with killed_at(moment):
                opened(registry.root).rollback("demo", "champion", expected="3")

        code = in_process(one)
        with contextlib.suppress(RefusedError):  # the kill came after the last step: it stands for 2
            opened(registry.root).rollback("demo", "champion", expected="3")
        assert [(each.before, each.after) for each in opened(registry.root).history("demo")] == [*three, (3, 2)], moment
        if code == 0:
            break
        moment += 1
    assert moment > 6


def test_promotions_at_once_are_one_after_the_other(registry: Registry, tmp_path: Path) -> None:
    """Fails if two processes read the same `before`, or one's note replaces another's."""
    registry.add("demo", small(tmp_path / "0", 0), {})
    for n in range(1, 5):
        registry.add("demo", small(tmp_path / str(n), n), {})
    children = [
        start(lambda n=n: opened(registry.root).promote("demo", str(n), "champion", f"of {n}")) for n in range(1, 5)
    ]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    history = registry.history("demo")
    assert [each.number for each in history] == [1, 2, 3, 4]
    assert {each.after for each in history} == {1, 2, 3, 4}
    assert [each.before for each in history] == [None, *(each.after for each in history[:-1])]
    assert registry.version("demo", "champion").number == history[-1].after

    now = str(history[-1].after)
    others = [str(n) for n in range(1, 5) if str(n) != now]
    children = [start(lambda n=n: opened(registry.root).promote("demo", n, "champion", expected=now)) for n in others]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 1, 1], "one of those that expected it has it"


def test_adding_the_same_at_once_is_one_version(registry: Registry, tmp_path: Path) -> None:
    folder = small(tmp_path / "variant")
    children = [start(lambda: opened(registry.root).add("demo", folder, {})) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert len(registry.versions("demo")) == 1 and not list((registry.root / "adding").iterdir())


def test_what_the_backend_refuses_leaves_no_copy(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: object) -> int:
        raise BackendError("database or disk is full")

    registry.add("demo", small(tmp_path / "1", 1), {})
    registry.promote("demo", "1", "champion")
    registry.add("demo", small(tmp_path / "2", 2), {})
    monkeypatch.setattr(FileBackend, "add", fail)
    monkeypatch.setattr(FileBackend, "set_alias", fail)
    with pytest.raises(BackendError):
        registry.add("demo", small(tmp_path / "3", 3), {})
    assert len(list((registry.root / "variants").iterdir())) == 2
    with pytest.raises(BackendError):
        registry.promote("demo", "2", "champion")
    monkeypatch.undo()
    assert [each.after for each in registry.history("demo")] == [1], "not done later behind the back of who was told"


def test_what_is_not_there_is_said(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no registry in"):
        registry.names()
    registry.add("reviews", small(tmp_path / "variant"), {})
    assert registry.names() == ["reviews"]
    for call, words in (
        (lambda: registry.versions("review"), "did you mean reviews"),
        (lambda: registry.version("reviews", "7"), "its versions are 1"),
        (lambda: registry.version("reviews", "champion"), "its aliases none"),
        (lambda: registry.add("a/b", tmp_path / "variant", {}), "is no name"),
        (lambda: registry.promote("reviews", "1", "v3"), "is no alias"),
        (lambda: registry.promote("reviews", "1", "latest"), "is no alias"),
        (lambda: registry.promote("reviews", "1", "champion", "x" * 1001), "--reason has 1,001"),
        (lambda: registry.rollback("reviews", "champion"), "has no alias champion"),
        (lambda: registry.promote("reviews", "1", "champion", expected="2"), "stands for version none, not for 2"),
        (lambda: registry.add("reviews", tmp_path / "nowhere", {}), "there is no folder"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_notes_fit_into_every_database() -> None:
    from pat.registry.moves import Promotion, _text
    from pat.registry.registry import REASON

    longest = Promotion(10**6, "a" * 64, "rollback", 10**6, 10**6, "w" * 200, 2e9, "\\" * REASON, "passed " + "0" * 12)
    assert len(_text(longest)) < 5000 and re.search("reason", _text(longest))
    assert dataclasses.asdict(longest)["gate"].startswith("passed")


@pytest.mark.parametrize("readable", [True, False])
def test_a_version_whose_answer_was_lost_keeps_its_files(
    readable: bool, registry: Registry, tmp_path: Path, monkeypatch: Any
) -> None:
    """A server may commit and then not be heard of: the version is listed, so its files must be there."""
    add, versions = FileBackend.add, FileBackend.versions

    def lost(*given: Any) -> int:
        add(*given)
        if not readable:
            monkeypatch.setattr(FileBackend, "versions", silent)
        raise BackendError("read timed out")

    def silent(*_: object) -> Any:
        raise BackendError("read timed out")

    monkeypatch.setattr(FileBackend, "add", lost)
    with pytest.raises(BackendError, match="timed out"):
        registry.add("demo", small(tmp_path / "1", 1), {})
    monkeypatch.setattr(FileBackend, "versions", versions)
    (version,) = registry.versions("demo")
    assert registry.checked(version).is_dir()


@pytest.mark.parametrize("new", [True, False])
def test_what_a_killed_get_has_left_is_not_in_the_way(
    new: bool, registry: Registry, tmp_path: Path, monkeypatch: Any
) -> None:
    version, _ = registry.add("demo", small(tmp_path / "variant"), {})
    out = tmp_path / "out[1]"
    out.mkdir()
    dead = out / ".7.partial" if not new else tmp_path / ".out[1].7.partial"
    alive = dead.with_name(dead.name.replace("7", "8"))
    for left in (dead, alive):
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    partial.clear(out)
    assert not dead.exists() and alive.exists()
    os.close(held)
    partial.clear(out)
    assert not alive.exists() and not list(out.iterdir())
    if new:
        out.rmdir()
    registry.get(version, out)
    assert contents(out) == contents(tmp_path / "variant")
