"""The frontier's own logic: which rows flags select, what is run again, what is written down. No model runs."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pat.config import compose
from pat.models.tokenizers import byte_tokenizer
from tests import models
from tests.benchmarks import frontier, other_chats, other_data, other_texts
from tests.benchmarks.commands import PAT
from tests.benchmarks.frontier import Measured, Results, Runner, folder_of, run_all
from tests.benchmarks.frontier_report import OTHERS, into_page, lines, markdown, on_other_data, picture
from tests.benchmarks.frontier_rows import METHODS, Row, Target, rows
from tests.benchmarks.peers import PEERS
from tests.small_recipes import composed
from tests.unit.house.test_docs import code_in

ALL = list(METHODS)


def test_a_finished_row_is_never_repeated_and_a_failed_one_only_when_asked(tmp_path: Path) -> None:
    results, measured = Results(tmp_path / "frontier.json"), list[str]()
    selected = rows(["addresses"], [0], ["50"], ["alps", "wanda"], 1)
    assert [row.method for row in selected] == ["alps", "wanda"]

    def measure(row: Row) -> Measured:
        measured.append(row.method)
        if row.method == "wanda":
            return Measured("perplexity", error="no memory", commands=["pat prune"])
        return Measured("perplexity", 39.2)

    for again in (False, False, True):
        run_all(selected, results, measure, again)
    assert measured == ["alps", "wanda", "wanda"]
    kept = results.rows()["addresses-0-50-wanda-0"]
    assert (kept["value"], kept["error"], kept["commands"]) == (None, "no memory", ["pat prune"])


def test_an_interrupted_command_goes_on_behind_the_last_finished_row(tmp_path: Path) -> None:
    results, measured = Results(tmp_path / "frontier.json"), list[str]()
    selected = rows(["addresses"], [0], ["50"], ["alps", "wanda", "magnitude"], 1)

    def interrupted(row: Row) -> Measured:
        if row.method == "wanda":
            raise KeyboardInterrupt
        return Measured("perplexity", 39.2)

    def measure(row: Row) -> Measured:
        measured.append(row.method)
        return Measured("perplexity", 50.0)

    with pytest.raises(KeyboardInterrupt):
        run_all(selected, results, interrupted, False)
    run_all(selected, results, measure, False)
    assert measured == ["wanda", "magnitude"]
    assert results.rows()["addresses-0-50-alps-0"]["value"] == 39.2


def test_a_row_that_was_stopped_goes_on_where_its_training_has_saved(tmp_path: Path) -> None:
    """Would catch: a thousand steps that begin again, or processor time of one start only."""
    row, machine = Row("addresses", 1000, "50", "alps-taught", 0), Machine()
    runner = Runner(tmp_path, machine)

    def stopped(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        if "train.num_steps=760" not in command:
            return machine(command, **given)
        runner.stop(15, None)
        (tmp_path / folder_of(row) / "run").mkdir()  # with a checkpoint
        return subprocess.CompletedProcess(command, 85)

    runner.execute = stopped
    with pytest.raises(SystemExit):
        runner.measure(row)
    kept = tmp_path / folder_of(row) / frontier.DONE
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"cpu_seconds": 500}))
    machine.commands.clear()

    def goes_on(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        assert (tmp_path / folder_of(row) / "run").exists() or "760" not in str(command)
        return machine(command, **given)

    measured = Runner(tmp_path, goes_on).measure(row)
    assert [command[len(PAT)] for command in machine.commands] == ["train", "export", "evaluate"]
    assert (measured.value, len(measured.commands)) == (39.2, 5) and 500 <= (measured.cpu_seconds or 0) < 510
    assert not kept.exists()
    configs = [yaml.safe_load(text)["train"]["num_steps"] for text in measured.configs]
    assert configs == [2, 2], "of the teacher, exported by the first start's second command, and of the pruned model"


def test_rows_have_methods_that_fit_their_target_and_seeds_only_where_they_train() -> None:
    untrained = rows(["addresses"], [0], ["50", "2:4", "ffn=0.5"], ALL, seeds=3)
    assert {row.seed for row in untrained} == {0}
    by_target = {t: {row.method for row in untrained if row.target == t} for t in ("dense", "50", "2:4", "ffn=0.5")}
    assert by_target["dense"] == {"dense"}
    assert "modelopt-sparsegpt" in by_target["2:4"] - by_target["50"]  # it has N:M only
    assert "movement" not in by_target["50"]  # it needs gradients
    assert by_target["ffn=0.5"] == {"obs", "obs-reconstructed", "torch-pruning-magnitude", "torch-pruning-taylor"}
    trained = rows(["addresses"], [100], ["50"], ALL, seeds=3)
    assert [row.seed for row in trained if row.method == "movement"] == [0, 1, 2]
    assert len({row.name for row in untrained + trained}) == len(untrained + trained)


class Machine:
    """Takes commands instead of a shell; one of them may fail, and `pat evaluate` finds these figures."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.commands = fails, list[list[str]]()

    def __call__(self, command: list[str], stdout: TextIO, **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.fails in command:
            stdout.write(f"{frontier.ROOT}/x: no memory")
            return subprocess.CompletedProcess(command, 1)
        if "evaluate" in command:
            metrics = {"perplexity": 39.2, "accuracy": 0.9}
            figures = {"metrics": metrics, "parameters": 4, "nonzero_parameters": 2}
            Path(command[-1]).write_text(json.dumps({"models": [figures]}))
        if tuple(command[: len(PAT)]) == PAT and "--out" in command:
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "export.json").write_text(json.dumps({"config": {"train": {"num_steps": len(self.commands)}}}))
        if "--pattern" in command or "--sparsity" in command:
            if command[0] == str(PEERS["llmcompressor"].python):
                cut = Path(command[4])
                cut.mkdir(parents=True)
                layer = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
                tensors = {"model.layers.0.x_proj.weight": layer, "model.embed.weight": torch.zeros(3, 3)}
                save_file(tensors | {"model.layers.0.norm.weight": torch.zeros(3)}, cut / "model.safetensors")
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAT_PEERS", str(tmp_path / "peers"))
    monkeypatch.setattr(type(PEERS["llmcompressor"]), "versions", lambda peer: {peer.name: "1"})
    for peer in PEERS.values():
        peer.folder.mkdir(parents=True)
        peer.installed()


@pytest.mark.usefixtures("peers")
def test_a_peers_cut_is_trained_with_exactly_its_zeros(tmp_path: Path) -> None:
    machine = Machine()
    row = Row("addresses", 100, "50", "llmcompressor-sparsegpt", 0)
    measured = Runner(tmp_path / "runs", machine).measure(row)
    assert (measured.value, measured.error) == (39.2, None)
    trained = next(command for command in machine.commands if "train" in command)
    assert "pruners.weights.budget.sparsity=0.5" in trained  # of the layers' matrices; no embedding, no norm
    assert "pruners.weights.criterion.name=magnitude" in trained and "pruners.weights.scope=global" in trained
    assert f"model.path={machine.commands[1][4]}" in trained  # what the peer wrote
    assert measured.versions["llmcompressor: llmcompressor"] == "1"


def test_a_taught_model_has_no_more_steps_and_starts_from_its_teacher(tmp_path: Path) -> None:
    machine = Machine()
    assert Runner(tmp_path, machine).measure(Row("addresses", 1000, "50", "alps-taught", 0)).error is None
    dense, taught = (command for command in machine.commands if "train" in command)
    assert "train.num_steps=240" in dense and "pruners={}" in dense and "train.num_steps=760" in taught
    out = machine.commands[1][machine.commands[1].index("--out") + 1]
    assert f"model.path={out}" in taught and f"distill.teacher={out}" in taught and "seed=1" in taught


@pytest.mark.usefixtures("peers")
def test_ours_and_peers_are_given_the_same_samples_and_judged_by_the_same_command(tmp_path: Path) -> None:
    ours, theirs = Machine(), Machine()
    Runner(tmp_path / "a", ours).measure(Row("addresses", 0, "50", "alps", 0))
    Runner(tmp_path / "b", theirs).measure(Row("addresses", 0, "50", "llmcompressor-wanda", 0))
    prune, written = ours.commands[0], theirs.commands[0]
    assert (prune[prune.index("--samples") + 1], prune[prune.index("--max-length") + 1]) == ("128", "256")
    assert written[2] == "128" and "data.max_length=256" in written and "data.train=assets/sotu/train.jsonl" in written
    judge: Callable[[list[str]], list[str]] = lambda command: command[len(PAT) : -1]  # noqa: E731
    assert [part for part in judge(ours.commands[-1]) if "/" not in part] == [
        part for part in judge(theirs.commands[-1]) if "/" not in part
    ]


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("data, steps", [("addresses", 80), ("reviews", 120)])
@pytest.mark.parametrize(
    "target, ours, theirs",
    [
        ("50", "alps", ["llmcompressor-sparsegpt", "llmcompressor-wanda"]),
        ("ffn=0.5", "obs", ["torch-pruning-taylor", "torch-pruning-magnitude", "smaller"]),
    ],
)
def test_what_another_package_has_cut_is_trained_by_the_recipe_of_ours(
    data: str, steps: int, target: str, ours: str, theirs: list[str], tmp_path: Path
) -> None:
    """The last run of each: another recipe has another rate, which would be tuning that others do not get."""

    def trained(method: str) -> tuple[object, ...]:
        machine = Machine()
        assert Runner(tmp_path / method, machine).measure(Row(data, steps, target, method, 0)).error is None
        last = [command for command in machine.commands if "train" in command][-1]
        config = composed(*last[len(PAT) + 1 :])
        return config.optim, config.data, config.engine, config.train.global_batch_size

    assert {method: trained(method) for method in theirs} == dict.fromkeys(theirs, trained(ours))


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("data, steps, left, batch", [("addresses", 80, 80, 4), ("reviews", 120, 84, 16)])
def test_a_peer_that_trains_by_itself_has_the_steps_and_samples_that_are_left(
    data: str, steps: int, left: int, batch: int, tmp_path: Path
) -> None:
    """Would catch: a peer that sees more of the data than ours, or whose model has not been trained before its cut."""
    machine = Machine()
    assert Runner(tmp_path, machine).measure(Row(data, steps, "80", "torchao-pat", 0)).error is None
    *before, samples, cut, _ = machine.commands
    assert samples[2] == str(left * batch) and cut[-2:] == ["--steps", str(left)]
    settings = composed(*(key for key in samples if "=" in key))
    assert settings.train.global_batch_size == batch and cut[2].endswith("before/model" if before else "smollm2")


@pytest.mark.usefixtures("peers")
def test_a_peer_that_fails_leaves_its_command_and_error(tmp_path: Path) -> None:
    script = str(frontier.HERE / PEERS["modelopt"].script)
    measured = Runner(tmp_path / "runs", Machine(script)).measure(Row("addresses", 0, "2:4", "modelopt-sparsegpt", 0))
    assert measured.value is None and measured.error == "x: no memory"
    assert "tests/benchmarks/peers/with_modelopt.py" in measured.commands[-1]
    assert str(frontier.ROOT) not in json.dumps(measured.commands)


@pytest.mark.usefixtures("peers")
def test_a_row_that_is_stopped_while_its_peer_is_installed_goes_on(tmp_path: Path) -> None:
    """Would catch: no processor time where nothing of the row has run, or an exit code of 1 that is a failed row."""
    (PEERS["llmcompressor"].folder / "installed.txt").unlink()
    row, machine = Row("addresses", 0, "50", "llmcompressor-wanda", 0), Machine("install")
    runner = Runner(tmp_path / "runs", machine)

    def stopped(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        if "install" in command:
            runner.stop(2, None)
        return machine(command, **given)

    runner.execute = stopped
    with pytest.raises(SystemExit):
        runner.measure(row)
    measured = Runner(tmp_path / "runs", Machine()).measure(row)
    assert (measured.value, measured.error) == (39.2, None) and (measured.cpu_seconds or 0) < 10


def test_a_signal_to_the_runner_reaches_its_command(tmp_path: Path) -> None:
    """Would catch: a training that goes on for hours when its runner is asked to stop."""
    waits = "signal.signal(15, lambda *_: sys.exit(1)); os.kill(os.getppid(), 15); time.sleep(60); sys.exit(0)"
    runner = Runner(tmp_path)
    with pytest.raises(SystemExit) as left:
        runner.run([sys.executable, "-c", f"import os, signal, sys, time; {waits}"], Measured("perplexity"))
    assert left.value.code == 85 and runner.child is not None and runner.child.returncode == 1


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("target, flags", [("ffn=0.5", "ffn=0.5"), ("layers=20", "layers=20")])
def test_a_smaller_model_is_cut_in_this_environment_and_trained_as_long(
    tmp_path: Path, target: str, flags: str
) -> None:
    machine = Machine()
    assert Runner(tmp_path, machine).measure(Row("addresses", 80, target, "smaller", 0)).error is None
    _, cut, trained, *_ = machine.commands
    assert cut[0] == sys.executable and cut[-2:] == ["--keep", flags]
    assert "train.num_steps=80" in trained and "pruners={}" in trained and f"model.path={cut[4]}" in trained


def _loaded(tmp_path: Path, family: str, keep: str) -> tuple[Any, Any]:
    """A model, and what the script makes of it."""
    dense = models.model(family)
    dense.save_pretrained(tmp_path / "dense")
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    script = frontier.HERE / PEERS["smaller"].script
    words = [str(tmp_path / "dense"), "none", str(tmp_path / "cut"), "--method", "plain", "--keep", keep]
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", output_loading_info=True)
    cut, said = loaded
    assert not any(said.values()), said
    return dense, cut


@pytest.mark.slow
def test_a_smaller_model_has_the_first_neurons_or_spaced_layers(tmp_path: Path) -> None:
    """Would catch: a matrix that is cut across the other dimension, or layers in another order."""
    dense, cut = _loaded(tmp_path / "a", "llama", "ffn=0.5")
    width = models.NEURONS // 2
    for before, after in zip(dense.model.layers, cut.model.layers, strict=True):
        assert torch.equal(after.mlp.up_proj.weight, before.mlp.up_proj.weight[:width])
        assert torch.equal(after.mlp.down_proj.weight, before.mlp.down_proj.weight[:, :width])
    dense, cut = _loaded(tmp_path / "b", "llama", "layers=2")
    assert torch.equal(cut.model.layers[1].mlp.up_proj.weight, dense.model.layers[-1].mlp.up_proj.weight)
    assert len(cut.model.layers) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("peers")
def test_the_commands_of_the_page_select_rows_that_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a row that is renamed, or keys that are none any more, after hours of others."""
    page = (frontier.ROOT / "docs" / "frontier.md").read_text()
    commands = [line for line in code_in(page) if line.startswith("python tests/benchmarks/frontier.py --data")]
    assert len(commands) > 1
    selected = list[Row]()

    def noted(*given: Any) -> list[Row]:
        selected.extend(found := rows(*given))
        return found

    monkeypatch.setattr(frontier, "rows", noted)
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*shlex.split(command)[1:], "--dry-run"])
        before = len(selected)
        frontier.main()
        said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert said == [row.name for row in selected[before:]] and said, command
    for row in {(row.data, row.steps > 0, row.target, row.method): row for row in selected}.values():
        machine = Machine()
        assert Runner(tmp_path / "runs", machine).measure(row).error is None
        for words in machine.commands:
            if words[: len(PAT) + 1] == [*PAT, "train"]:
                assert compose.compose(words[len(PAT) + 1 :], lambda config: 0) == 0


def test_an_encoder_is_cut_when_it_has_learned(tmp_path: Path) -> None:
    machine = Machine()
    Runner(tmp_path, machine).measure(Row("reviews", 0, "80", "alps", 0))
    verbs = [command[len(PAT)] for command in machine.commands]
    assert verbs == ["train", "export", "prune", "evaluate"]
    assert machine.commands[2][len(PAT) + 1] == machine.commands[1][machine.commands[1].index("--out") + 1]


def test_a_target_says_the_same_to_both_commands() -> None:
    assert Target("70").flags() == ["--sparsity", "0.7"]
    assert Target("70").keys() == ["pruners.weights.budget.sparsity=0.7"]
    assert Target("2:4").flags() == ["--pattern", "2:4"]
    assert Target("2:4").keys()[-1] == "pruners.weights.budget.sparsity=0.5"
    assert Target("ffn=0.5").flags() == ["--keep", "ffn=0.5"]


def _row(method: str, value: float | None, seed: int = 0, data: str = "addresses", steps: int = 0) -> dict[str, Any]:
    metric = "accuracy" if data == "reviews" else "perplexity"
    measured = Measured(metric, value, nonzero_parameters=10**6, cpu_seconds=60.0, error=None if value else "no wheel")
    return vars(Row(data, steps, "50", method, seed)) | vars(measured)


def test_the_table_has_means_over_seeds_the_best_first_and_what_does_not_run_last() -> None:
    table = lines([_row("peer", None), _row("wanda", 58.0), _row("alps", 40.0), _row("alps", 42.0, seed=1)])
    assert [(line.method, line.mean) for line in table] == [("alps", 41.0), ("wanda", 58.0), ("peer", None)]
    text = markdown(table)
    assert "| alps | perplexity 41.00 | 2.00 (2) |" in text[2] and "does not run" in text[-1]
    assert "| alps † |" in markdown(lines([_row("alps", 40.0) | {"note": "measured otherwise"}]))[2]
    accuracies = lines([_row("a", 0.8, data="reviews"), _row("b", 0.9, data="reviews")])
    assert [line.method for line in accuracies] == ["b", "a"]


def test_the_picture_is_drawn_of_what_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = lines([_row("alps", 40.0), _row("alps", 30.0, steps=100), _row("peer", None)])
    picture(table, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_in_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n\n<!-- one -->\n| old |\n<!-- end of one -->\n\n<!-- two -->\n<!-- end of two -->\n")
    for _ in range(2):
        into_page(page, "one", ["| new |", "| row |"])
        made = "above\n\n<!-- one -->\n| new |\n| row |\n<!-- end of one -->\n\n<!-- two -->\n<!-- end of two -->\n"
        assert page.read_text() == made


def test_data_that_had_no_part_has_tables_of_its_own() -> None:
    measured = [
        _row("alps", value, data="banking", seed=seed) | {"target": "80", "metric": "accuracy"}
        for seed, value in ((0, 0.85), (1, 0.86))
    ]
    measured.append(_row("alps", 7.17, data="sums") | {"target": "50", "metric": "perplexity"})
    ends = {mark: on_other_data(lines(measured), other)[-1] for mark, other in OTHERS.items()}
    assert ends["other data"].endswith("| 9,993, 3,079 | - | 85.5 % (2) | - | - |")
    assert ends["other texts"].endswith("| 7,473, 320 | - | 7.170 (1) | - |")


def test_the_page_shows_the_tables_of_the_results_file() -> None:
    measured = Results(frontier.ROOT / "results" / "frontier.json").rows()
    page = (frontier.ROOT / "docs" / "frontier.md").read_text()
    table = lines(list(measured.values()))
    assert "\n".join(markdown(table)) in page
    for other in OTHERS.values():
        assert "\n".join(on_other_data(table, other)) in page


def test_the_other_data_holds_out_each_text_once_and_trains_on_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a text with two labels on both sides, a test file that is trained on, a text with commas."""
    lines = [f"{number % 2} a sentence number {number}" for number in range(200)]
    files = {"train.all": [*lines, "1 a sentence number 0"], "test.all": ["0 a sentence number 4", "5 h\xe9"]}
    files["named.csv"] = ["text,category", '"lost, again ",card', "stolen,card"]
    hashes = dict[str, str]()
    for name, texts in files.items():
        data = "\n".join(texts).encode("latin-1")
        (tmp_path / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    train, held = other_data.split(tmp_path, other_data.Sentences("train.all", hashes["train.all"], every=5))
    assert len(train) + len(held) == 200 and not train.keys() & held.keys() and 20 < len(held) < 60
    assert (train | held)["a sentence number 0"] == 0, "its first label"
    tested = other_data.Sentences("train.all", hashes["train.all"], test="test.all", test_sha256=hashes["test.all"])
    train, held = other_data.split(tmp_path, tested)
    assert held == {"a sentence number 4": 0, "h\xe9": 5} and len(train) == 199
    assert other_data.labelled(tmp_path / "named.csv", hashes["named.csv"]) == {"lost, again": "card", "stolen": "card"}
    elsewhere = other_data.Sentences("another/repository.csv", "")
    monkeypatch.setattr(other_data, "SETS", {"opinions": tested, "banking": elsewhere})
    monkeypatch.setattr(sys, "argv", ["other_data.py", str(tmp_path)])
    monkeypatch.setenv("PAT_ASSETS", str(tmp_path / "assets"))
    other_data.main()
    written = (tmp_path / "assets/opinions/eval.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written][1] == {"text": "h\xe9", "label": 5}
    with pytest.raises(SystemExit, match="is another file"):
        other_data.split(tmp_path, other_data.Sentences("test.all", hashes["train.all"]))


def test_the_other_texts_hold_out_whole_files_and_pieces_that_nothing_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: half of a file on either side, a licence that both begin with, tests of the library, text lost."""
    lines = [f"line {i} of a play" for i in range(3000)]
    text = "\n\n".join(lines)
    found = other_texts.pieces(text, "\n\n")
    assert "\n\n".join(found) == text and all(3990 < len(piece) < 4100 for piece in found[:-1])
    play = tmp_path / other_texts.PLAYS
    play.parent.mkdir(parents=True)
    play.write_text(text)
    with pytest.raises(SystemExit, match="is another file"):
        other_texts.plays(tmp_path)
    monkeypatch.setattr(other_texts, "SHA256", hashlib.sha256(text.encode()).hexdigest())
    train, held = other_texts.plays(tmp_path)
    assert train + held == found and len(held) == len(found) // 10 > 0
    library = tmp_path / "library"
    for number in range(60):
        (library / f"{number}").mkdir(parents=True)
        (library / f"{number}" / "code.py").write_text(f"x = {number}\n" * 1000)
        (library / f"{number}" / "empty.py").write_text("pass\n")
    (library / "test").mkdir()
    (library / "test" / "test_code.py").write_text("assert True\n")
    train, held = other_texts.library(library)
    assert not set(train) & set(held) and "pass" in train and "assert True" not in train + held
    of_train, of_held = ({piece.split("\n")[0] for piece in part} - {"pass"} for part in (train, held))
    assert len(of_train) + len(of_held) == 60 and 2 <= len(of_held) <= 14 and not of_train & of_held
    monkeypatch.setattr(sys, "argv", ["other_texts.py", str(tmp_path)])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    monkeypatch.setenv("PAT_ASSETS", str(tmp_path / "assets"))
    other_texts.main()
    written = (tmp_path / "assets/plays/eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in written] == found[-len(written) :]


def test_the_other_chats_are_questions_and_answers_without_marks_for_a_calculator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: marks left in, an answer cut off at the first one, the two files exchanged."""
    files = dict[str, tuple[str, str]]()
    for part, (name, _) in other_chats.FILES.items():
        rows = [{"question": f"How many in {part}?", "answer": "48/2 = <<48/2=24>>24, <<1+1=2>>2\n#### 24"}]
        path = tmp_path / other_chats.FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[part] = name, hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(other_chats, "FILES", files)
    monkeypatch.setattr(sys, "argv", ["other_chats.py", str(tmp_path)])
    monkeypatch.setenv("PAT_ASSETS", str(tmp_path / "assets"))
    other_chats.main()
    for part in files:
        (row,) = map(json.loads, (tmp_path / "assets" / "sums" / f"{part}.jsonl").read_text().splitlines())
        asked, answered = row["messages"]
        assert asked == {"role": "user", "content": f"How many in {part}?"}
        assert answered == {"role": "assistant", "content": "48/2 = 24, 2\n#### 24"}
