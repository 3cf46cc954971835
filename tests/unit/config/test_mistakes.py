"""What users get wrong ends in one sentence and exit code 2: no trace, and no directory that was not there before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from pat import cli
from pat.commands import train
from pat.common import files
from pat.config import compose
from pat.launch import multi_node, process, single_node, slurm
from pat.launch.environment import RankEnvironment
from pat.models.tokenizers import byte_tokenizer
from pat.models.weight_files import safetensors_fault
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config
from pat.training import preflight
from tests import models
from tests.sets import thinned

ROWS = [{"text": f"text number {n} of the file", "label": ["bad", "good"][n % 2]} for n in range(20)]
Rows = Sequence[Mapping[str, object]]


@pytest.fixture(autouse=True)
def nobody_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that gets as far as the ranks is a failure here."""

    def launch(*_: object) -> int:
        raise AssertionError("the mistake was not noticed: ranks would start")

    for module in (single_node, multi_node):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    config = BertConfig(
        vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def damaged(classifier: Path, folder: Path, damage: Callable[[Path], object]) -> Path:
    """A copy of the classifier with something wrong."""
    folder.mkdir()
    for path in classifier.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    return folder


def rows_file(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: object) -> str:
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *map(str, arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == ExitCode.BAD_INPUT, said
    sentence = said.splitlines()[-1]
    assert said.count("pat: ") == 1 and sentence.startswith("pat: ") and "Traceback" not in said, said
    return sentence


def training(classifier: Path, tmp_path: Path) -> list[str]:
    """A run of `reviews_dense` on twenty rows."""
    rows = rows_file(tmp_path / "rows.jsonl", ROWS)
    data = [f"data.train={rows}", f"data.eval={rows}", "data.max_length=16"]
    return ["recipe=reviews_dense", "logger=none", f"model.path={classifier}", *data, 'optim.trainable=["*"]']


def in_the_way(tmp_path: Path) -> dict[str, Path]:
    """Paths that cannot become a folder, each for a reason of its own."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "run",
        "in /proc": Path("/proc/run"),
        "in /sys": Path("/sys/run"),
        "loop": tmp_path / "loop",
        "below a loop": tmp_path / "loop" / "run",
        "long": tmp_path / "new" / ("x" * 300),
    }


PLACES = ["a file", "below a file", "in /proc", "in /sys", "loop", "below a loop", "long"]


@pytest.mark.parametrize("where", thinned(PLACES, 2))
def test_what_cannot_be_a_run_directory(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = in_the_way(tmp_path)[where]
    before = sorted(tmp_path.rglob("*"))
    said = refused(capsys, "train", "recipe=parity", "logger=none", f"run.dir={path}")
    assert f"run.dir={path} cannot be" in said
    assert sorted(tmp_path.rglob("*")) == before, "and nothing above it stays"


@pytest.mark.parametrize("where", thinned(PLACES, 2))
def test_what_cannot_be_the_cache(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = in_the_way(tmp_path)[where]
    said = refused(capsys, "train", "recipe=parity", "logger=none", "run.dir=new/run", f"data.cache_dir={path}")
    assert f"data.cache_dir={path} cannot be" in said and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "overrides, words",
    thinned(
        [
            (["data.text_column=label"], "data.text_column and data.label_column are both 'label'"),
            (["data.text_pair_column=text"], "data.text_column and data.text_pair_column are both 'text'"),
            (["data.train=3"], "data.train is 3"),
            (["data.train=[1,2]"], "data.train is [1, 2]"),
            (["data.train=[]"], "data.train=[] must be"),
            (["data.eval={a: 1}"], "data.eval is {'a': 1}"),
            (["data.train=."], "no file matches '.'"),
            (["engine.deepspeed=3"], "engine.deepspeed is 3"),
            (["engine.deepspeed=rows.jsonl"], "engine.deepspeed=rows.jsonl: not a readable DeepSpeed JSON"),
            (["+model.config.num_attention_heads=0"], "model.config.num_attention_heads is 0"),
            (["+model.config.num_hidden_layers=-1"], "model.config.num_hidden_layers is -1"),
            (["optim.lr=inf"], "optim.lr is infinite"),
            (["seed=99999999999999999999"], "but must be at most"),
            (["run.dir="], "run.dir is empty"),
            (["engine.hostfile=."], "engine.hostfile=. cannot be read"),
        ],
        3,
    ),
)
def test_settings(
    overrides: list[str], words: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", *training(classifier, tmp_path), "run.dir=new/run", *overrides)
    assert words in said
    assert not (tmp_path / "new").exists(), "a refused command leaves no directory"


@pytest.mark.parametrize(
    "content, words",
    thinned(
        [
            ([], "has no rows"),
            ([{"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", "y"]}], "data.label_column='label'"),
            ([{"text": "a", "label": {"x": 1}}, {"text": "b", "label": {"x": 2}}], "data.label_column='label'"),
            ([{"text": ["a"], "label": 0}, {"text": ["b"], "label": 1}], "not text"),
            ([{"text": "a", "label": 0.5}, {"text": "b", "label": 0.25}], "must be strings, or whole numbers"),
        ],
        2,
    ),
)
def test_rows(content: Rows, words: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows_file(tmp_path / "odd.jsonl", content)
    command = [*training(classifier, tmp_path), "run.dir=new/run", f"data.train={file}"]
    assert words in refused(capsys, "train", *command)
    assert not (tmp_path / "new").exists()


def test_a_text_needs_more_room_than_the_tokens_around_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where [CLS] and [SEP] alone are longer than max_length: the tokenizer's library ends in a trace."""
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    classes = models.transformers.AutoModelForSequenceClassification
    models.model("bert", auto=classes).save_pretrained(tmp_path / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "text", "number", "of", "the", "file"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "model")
    command = [*training(tmp_path / "model", tmp_path), "run.dir=new/run"]
    for length in (1, 2):
        said = refused(capsys, "train", *command, f"data.max_length={length}")
        assert f"data.max_length={length} leaves no room" in said and "give 3 or more" in said
    pair = rows_file(tmp_path / "pair.jsonl", [row | {"second": "the text"} for row in ROWS])
    command += [f"data.train={pair}", f"data.eval={pair}", "data.text_pair_column=second", "data.max_length=3"]
    assert "give 4 or more" in refused(capsys, "train", *command)
    assert not (tmp_path / "new").exists()


TORN = {
    "truncated": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "says"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "ends within its header"),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\x40" + bytes(7) + b"x" * 99), "not readable"),
    "longer": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"),
        "and its header says",
    ),
}


@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("key", thinned(["model.path", "distill.teacher", "evaluate"], 3))
def test_torn_weights_are_named(
    how: str, key: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = TORN[how]
    folder = damaged(classifier, tmp_path / "torn", damage)
    command = [*training(classifier, tmp_path), "run.dir=new/run"]
    if key == "evaluate":
        said = refused(capsys, "evaluate", folder, *command)
    else:
        teacher = ["distill=dense", "distill.weight=0.5"] if key == "distill.teacher" else []
        said = refused(capsys, "train", *command, *teacher, f"{key}={folder}")
    assert str(folder / "model.safetensors") in said and words in said, said
    assert not (tmp_path / "new").exists()


def test_whole_weights_are_whole(classifier: Path) -> None:
    assert safetensors_fault(classifier / "model.safetensors") is None


@pytest.mark.parametrize(
    "damage, words",
    thinned(
        [
            (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
            (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not a readable index"),
            (
                lambda f: (f / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model-2.safetensors"}}'
                ),
                "lacks model-2.safetensors",
            ),
            (lambda f: (f / "config.json").write_text("[]"), "torn"),
            (lambda f: (f / "tokenizer.json").write_bytes(os.urandom(99)), "No tokenizer could be loaded"),
            (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "holds no tokenizer"),
        ],
        2,
    ),
)
def test_model_folders(
    damage: Callable[[Path], object], words: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(classifier, tmp_path / "torn", damage)
    assert words in refused(capsys, "train", *training(folder, tmp_path), "run.dir=new/run")
    assert not (tmp_path / "new").exists()


def test_a_recipe_that_is_not_yaml_or_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "open.yaml").write_text("train: [\n")
    (tmp_path / "recipe" / "binary.yaml").write_bytes(b"\xe9\x00\xff")
    said = refused(capsys, "train", "recipe=open", "--config-dir", tmp_path)
    assert "open.yaml is not readable as YAML" in said and "line 2" in said
    said = refused(capsys, "train", "recipe=binary", "--config-dir", tmp_path)
    assert "binary.yaml is not text in UTF-8" in said
    for name in ("open", "binary"):
        said = refused(capsys, "submit", "recipe=parity", "--cluster", tmp_path / "recipe" / f"{name}.yaml")
        assert f"cannot read the cluster {tmp_path}/recipe/{name}.yaml" in said


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    """Fails if what the system says of the cache's disk reaches the user as a trace."""
    from pat.data import prepare

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "cache" / "train.arrow"))

    monkeypatch.setattr(prepare.prepare.__globals__["sources"], "load", full)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "recipe=parity", "logger=none", "run.dir=new/run"])
    said = capsys.readouterr().err
    assert stop.value.code == ExitCode.ERROR and "No space left on device" in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_too_little_memory_of_a_gpu_is_said_by_each_rank(monkeypatch, capsys) -> None:
    """Also by one whose machine's first rank has enough."""

    class Full:
        @staticmethod
        def main(_: object) -> int:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has 1 GiB free.\nMore")

    monkeypatch.setattr(cli.commands, "load", lambda _: Full)
    for rank, whose in (("0", "pat: CUDA"), ("1", "pat: rank 1 on ")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "recipe=parity"])
        said = capsys.readouterr().err
        assert stop.value.code == ExitCode.ERROR and said.startswith(whose) and said.count("\n") == 1
        assert "Tried to allocate 2.00 GiB" in said and "train.micro_batch_size" in said


def test_what_was_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a refused command takes away a directory that it did not make, or changes what is in it."""
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("old")
    refused(capsys, "train", "recipe=parity", "logger=none", f"run.dir={run}", "data.max_length=9999")
    assert (run / "config.yaml").read_text() == "old"


def test_a_start_over_that_is_refused_under_a_launcher_costs_the_run_before_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if rank 0 sets the earlier run aside before the data is known to be there."""
    monkeypatch.setattr("pat.launch.rank.run_rank", lambda run_dir, rank, work, announce, own: work(run_dir))
    monkeypatch.setattr(single_node, "rank_variables", lambda config: {"OMP_NUM_THREADS": "1"})
    monkeypatch.setattr(RankEnvironment, "export", lambda self: None)
    run, found = RunDir(tmp_path / "run"), list[Config]()
    checkpoint = run.checkpoints / "step-00000002" / "weights"
    checkpoint.parent.mkdir(parents=True)
    earlier = (checkpoint, run.config, run.version, run.metrics, run.summary, run.wandb_id, run.exit)
    for path in earlier:
        path.write_text(f'{{"old": "{path.name}"}}')
    keys = ["recipe=parity", "logger=none", f"run.dir={run.path}", "run.resume=never", "data=json", "data.eval=null"]
    compose.compose([*keys, "data.train=none.jsonl"], lambda config: found.append(config) or 0)
    prepare, kept = preflight.prepare, list[list[str]]()

    def contents() -> list[str]:
        return [path.read_text() if path.exists() else "gone" for path in earlier]

    monkeypatch.setattr(preflight, "prepare", lambda *given: kept.append(contents()) or prepare(*given))
    with pytest.raises(ValueError, match="none.jsonl"):
        train._become_rank(found[0], RankEnvironment(0, 1, 0, "127.0.0.1", 1, "torch"))
    kept.append(contents())
    assert kept == [[f'{{"old": "{path.name}"}}' for path in earlier]] * 2, "also where a kill comes while it prepares"


@pytest.mark.slow
def test_a_sweep_whose_members_share_a_mistake_leaves_nothing(tmp_path: Path, capsys) -> None:
    command = ["recipe=parity", "logger=none", "seed=0,1", "data.max_length=9999"]
    assert "make no sample of data.max_length=9999" in refused(capsys, "sweep", *command, "--out", "sweeps/mine")
    (tmp_path / "file").write_text("x")
    assert "--out=" in refused(capsys, "sweep", *command[:3], "--out", "file/sweep")
    assert not (tmp_path / "sweeps").exists()


def test_a_job_that_slurm_refuses_leaves_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "states", lambda _: {})
    submitted = ["--cluster", "slurm", "recipe=parity", "run.dir=new/run", "cluster.ranks_per_node=2"]
    assert "sbatch refuses the job" in refused(capsys, "submit", *submitted, "logger=none")
    assert not (tmp_path / "new").exists()


def test_an_export_that_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fake_run import write_run

    torch.manual_seed(1)
    model = models.model("llama")
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm")
    for where, path in in_the_way(tmp_path).items():
        said = refused(capsys, "export", "run", "--out", path)
        assert "cannot be a folder" in said or where == "a file", said
    (tmp_path / "run" / "tokenizer" / "loop").symlink_to("loop")  # fails while files are written
    with pytest.raises((SystemExit, Exception)):
        cli.main(["export", "run", "--out", "new/deep/out"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"- a", b"train: 3", b"nonsense: 1"])
@pytest.mark.parametrize(
    "command", [["train", "--frozen", "run"], ["export", "run", "--out", "out"], ["evaluate", "run"]]
)
def test_a_torn_config_of_a_run(command: list[str], content: bytes, tmp_path: Path, capsys) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    (tmp_path / "run" / "checkpoints" / "best").write_text("step-00000010")
    refused(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_two_starts_of_a_new_run_of_which_the_first_is_refused(tmp_path: Path) -> None:
    """Fails if the second would hold a lock in a directory that the first has removed."""
    run = tmp_path / "new" / "run"
    with pytest.raises(ValueError, match="refused"), process.only_user_of(run):
        with pytest.raises(ValueError, match="in use"), process.only_user_of(run):
            pass
        assert run.exists(), "the first still holds it"
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
    with process.only_user_of(run):
        (run / "config.yaml").write_text("")
    assert run.exists()
    with pytest.raises(ValueError, match="later"), process.only_user_of(run):
        raise ValueError("later")
    assert run.exists(), "what a start has begun stays"


@pytest.mark.parametrize(
    "command", [["plan", "recipe=parity"], ["data", "prepare", "recipe=parity"], ["doctor"], ["evaluate", "."]]
)
def test_where_figures_go_is_checked_before_the_work(command: list[str], tmp_path: Path, capsys) -> None:
    """Fails where a command works for minutes and then cannot write what it has found."""
    assert "there is no folder nowhere" in refused(capsys, *command, "--json", "nowhere/figures.json")
    assert "is a folder" in refused(capsys, *command, "--json", tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing was done"


def test_a_file_is_checked_before_the_work(tmp_path: Path) -> None:
    for file, words in ((tmp_path, "is a folder"), (tmp_path / "none" / "x.json", "there is no folder")):
        with pytest.raises(ValueError, match=words):
            files.check_writable(file, "--json")
    files.check_writable(tmp_path / "x.json", "--json")


def test_one_rank_of_each_machine_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a node that does not see the run's files ends without a word, or all its ranks say the same."""
    for launcher, (rank, local), says in (
        ("torch", ("3", "0"), "pat: rank 3 on "),
        ("torch", ("3", "1"), ""),
        ("slurm", ("0", "0"), "pat: there is no"),
    ):
        names = {"torch": ("RANK", "LOCAL_RANK"), "slurm": ("SLURM_PROCID", "SLURM_LOCALID")}[launcher]
        with monkeypatch.context() as patch:
            patch.setenv(names[0], rank)
            patch.setenv(names[1], local)
            with pytest.raises(SystemExit) as left:
                cli.main(["prompts", "check", "none.jsonl"])
        assert left.value.code == ExitCode.BAD_INPUT
        said = capsys.readouterr().err
        assert said.startswith(says) if says else not said
