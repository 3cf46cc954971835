"""`pat export`: a checkpoint as a stock Hugging Face folder, written and checked tensor by tensor.

    config.json, model*.safetensors, tokenizer files     what stock `from_pretrained` expects
    masks.safetensors                                     one bit a prunable weight
    README.md, export.json                                lineage and measured figures

No GPU and no rank is needed, whatever layout the checkpoint has. Peak memory is a few chunks of the largest tensor;
only the comparison of logits holds a whole model, where the weights take less than 4 GiB.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from pat.checkpoint.reader import CheckpointReader
from pat.checkpoint.retention import find_checkpoint
from pat.common import files, partial
from pat.common.files import read_json, sync_directory, write_json
from pat.common.parameters import DTYPES
from pat.config import frozen
from pat.export import masks
from pat.export.card import model_card
from pat.export.layout import layout
from pat.export.merged import MergedReader
from pat.export.report import export_json
from pat.export.source import Stream, specs
from pat.export.streamed import streamed_logit_diff
from pat.export.structures import restored, structures
from pat.export.verify import LOGIT_LIMIT, check_tensors, max_abs_logit_diff
from pat.export.writer import write_model
from pat.models import config_files
from pat.run.directory import RunDir
from pat.schema import Config
from pat.tasks import base
from pat.zero.checkpoint_files import CheckpointError

VERIFY = ("auto", "logits", "layers", "weights")
LAST = ("export.json", "config.json")  # without which nothing loads a folder


def export_run(
    run_dir: str | Path,
    out: str | Path,
    checkpoint: str | int = "best",
    dtype: str | None = None,
    verify: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Write RUN's checkpoint ("best", "last", a step or "sparsity=0.3") to the new folder `out`; returns export.json's.

    dtype: fp32, bf16 or fp16, by default the run's. verify: every tensor is always compared bit for bit; "logits" also
    compares the logits of the folder, loaded by stock code, with a model filled from the checkpoint; "layers" compares
    every layer and the logits with one module in memory at a time; "auto" is "logits" below 4 GiB of weights and
    "layers" above; "weights" is neither. Raises ValueError for bad input, CheckpointError where the checkpoint or
    the written folder is not what it must be; then nothing is left behind.
    """
    run, out = directory_of(Path(run_dir)), Path(out)
    if verify not in VERIFY:
        raise ValueError(f"verify is {verify!r}; allowed: {', '.join(VERIFY)}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a new folder")
    partial.clear(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose a new folder, or remove it")
    step_dir = find_checkpoint(run, checkpoint)
    config = frozen.load(run.config)
    reader = CheckpointReader(step_dir)
    dtype = dtype or reader.manifest["dtype"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    hf_config, auto_model = _model_config(run, config, DTYPES[dtype]), base.build(config.task).auto_model
    if config.peft.r is not None:
        reader = MergedReader(reader, config.peft, _on_meta(auto_model, hf_config))
    _check_names(reader, auto_model, hf_config, run)

    made = files.make(out, "--out")
    # Another folder cannot take the place of a mount point, a link or a shell's working directory: these are filled
    inside = out not in made
    try:
        with partial.written(out, inside) as part:
            result = _write(reader, part, run, config, dtype, hf_config, auto_model, verify, console)
            files.sync_tree(part)
            if inside:
                _move_up(part, out)
            else:
                os.replace(part, out)
                sync_directory(out.parent)
    except BaseException:
        files.remove_empty(made)
        raise
    return result


def _move_up(part: Path, out: Path) -> None:
    """Move a whole export into the folder around it. Before the last two files it is no model's folder; an exception
    takes all away again."""
    if [path for path in out.iterdir() if path != part]:
        raise ValueError(f"{out} is not empty any more: another program writes there; choose a new folder")
    names = [path.name for path in part.iterdir() if path.name not in LAST] + list(LAST)
    try:
        for name in names:
            os.replace(part / name, out / name)
    except BaseException:
        for path in (out / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    part.rmdir()
    sync_directory(out)


def _write(
    reader: CheckpointReader,
    folder: Path,
    run: RunDir,
    config: Config,
    dtype: str,
    hf_config: PretrainedConfig,
    auto_model: Any,
    verify: str,
    console: Console | None,
) -> dict[str, Any]:
    left = structures(reader, config, hf_config, _on_meta(auto_model, hf_config))
    written_as = hf_config if left.cut is None else left.cut.config
    written_as.save_pretrained(folder)
    config_files.write_old_rope_keys(folder)
    shutil.copytree(run.path / "tokenizer", folder, dirs_exist_ok=True)
    for name in (config_files.CONFIG, config_files.TOKENIZER):
        config_files.drop_code(folder / name)
    generation = run.path / "model" / config_files.GENERATION
    if generation.exists():
        shutil.copy(generation, folder)
    own = specs(reader, DTYPES[dtype], left.cut)
    stored = layout(_on_meta(auto_model, written_as), {spec.name: spec.shape for spec in own})
    content, stream = stored.specs(own), Stream(reader, left, stored)
    with _progress(console) as progress:
        if stream.measures:
            bar = progress.add_task("hash", total=stream.total)
            for done in stream.measure():
                progress.advance(bar, done)
        total = sum(math.prod(spec.shape) for spec in content)
        bar = progress.add_task("write", total=total)
        weight_map = write_model(folder, content, lambda spec: _counted(stream(spec), progress, bar))
        masks.write_masks(reader, folder, stream.mask_sha256 or "", left.flags)
        bar = progress.add_task("check", total=total)
        check_tensors(
            reader, folder, content, weight_map, stream.mask_sha256, lambda n: progress.advance(bar, n), left, stored
        )
    _check_summary(run, reader, stream)
    difference, layer, reason, logits = None, None, None, None
    large = sum(spec.numbytes for spec in content) >= LOGIT_LIMIT
    compared = (reader, folder, auto_model, hf_config, DTYPES[dtype], left, config.peft)
    if verify == "weights":
        reason = "not asked for"
    elif verify == "layers" or (verify == "auto" and large):
        difference, layer, logits = streamed_logit_diff(*compared)
    else:
        difference, logits = max_abs_logit_diff(*compared)
    result = export_json(reader, run, config, dtype, content, stream, folder) | {
        "max_abs_logit_diff": difference,
        "max_layer_diff": layer,
        "max_abs_logit_diff_reason": reason,
        "names_reason": stored.reason,
        "logits": logits,
    }
    (folder / "README.md").write_text(model_card(config, result), encoding="utf-8")
    write_json(folder / "export.json", result)
    return result


def directory_of(path: Path) -> RunDir:
    """A run directory: the path itself, or what `pat.integrations` left in the `pat` folder of a checkpoint."""
    beside = RunDir(path / "pat")
    return beside if beside.config.is_file() else RunDir(path)


def kept_structures(run: RunDir, reader: CheckpointReader, config: Config) -> dict[str, Tensor]:
    """Per site of a run's gates (num_units,) uint8, 1 = the unit is kept at a checkpoint."""
    hf_config = _model_config(run, config, DTYPES[config.engine.dtype])
    model = _on_meta(base.build(config.task).auto_model, hf_config)
    return {site: keep for each in restored(reader, config, model) for site, keep in each.keep_flags().items()}


def _model_config(run: RunDir, config: Config, dtype: torch.dtype) -> PretrainedConfig:
    """The Hugging Face config of the run's model, with the class that the task trains."""
    for name in ("model", "tokenizer"):
        if not (run.path / name).is_dir():
            raise ValueError(f"{run.path} has no {name} folder: it was not written by `pat train`, or not whole")
    try:
        hf_config = AutoConfig.from_pretrained(run.path / "model", trust_remote_code=False)
    except ValueError as error:
        raise ValueError(
            f"{run.path / 'model'} is of none of transformers' own models: {str(error).splitlines()[0]}"
        ) from error
    model_class = base.build(config.task).auto_model._model_mapping.get(type(hf_config), None)
    if model_class is None:
        raise ValueError(
            f"{run.path / 'model'}: transformers has no {hf_config.model_type} for task={config.task.name}"
        )
    hf_config.architectures = [(model_class[0] if isinstance(model_class, tuple) else model_class).__name__]
    hf_config.dtype = dtype
    return hf_config


def _check_names(reader: CheckpointReader, auto_model: Any, hf_config: PretrainedConfig, run: RunDir) -> None:
    """The checkpoint must hold exactly the tensors that the stock model class has."""
    model = _on_meta(auto_model, hf_config)
    parameters = {name: list(p.shape) for name, p in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    buffers = model.state_dict().keys() - parameters.keys() - tied
    ours = {name: list(p["shape"]) for name, p in reader.parameters.items()}
    for name in sorted(parameters.keys() | ours.keys()):
        if parameters.get(name) != ours.get(name):
            raise CheckpointError(
                f"{reader.dir} is of another model than {run.path / 'model'}: {name} has shape {ours.get(name)} in the "
                f"checkpoint and {parameters.get(name)} in {type(model).__name__}"
            )
    if set(reader.buffers()) != set(buffers):
        raise CheckpointError(
            f"{reader.dir} has the buffers {reader.buffers()}, {type(model).__name__} {sorted(buffers)}"
        )


def _on_meta(auto_model: Any, hf_config: PretrainedConfig) -> Any:
    """The model of the full shape, without weights."""
    with torch.device("meta"), no_init_weights():
        model = auto_model.from_config(hf_config)
        model.tie_weights()
    return model


def _check_summary(run: RunDir, reader: CheckpointReader, stream: Stream) -> None:
    """A finished run's own hashes, computed by its ranks, must be those of its last checkpoint."""
    summary = read_json(run.summary) or {}
    if summary.get("step") != reader.manifest["step"]:
        return
    for name, value in (("mask_sha256", stream.mask_sha256), ("weights_sha256", stream.weights.hexdigest())):
        if summary.get(name) not in (None, value):
            raise CheckpointError(
                f"{name} of {reader.dir} is {value}, but summary.json says {summary[name]}: they belong to different "
                "runs: choose another --checkpoint"
            )


@contextmanager
def _progress(console: Console | None) -> Any:
    """A bar on a terminal, nothing elsewhere."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _counted(chunks: Any, progress: Progress, bar: TaskID) -> Any:
    for chunk in chunks:
        progress.advance(bar, chunk.numel())
        yield chunk
