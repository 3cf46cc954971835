"""lm-evaluation-harness as a backend: its tasks, its figures, its files.

Source: Gao et al., github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from pat.common.text import did_you_mean
from pat.evaluation import prompts
from pat.evaluation.models import Loaded
from pat.tasks.templates import ChatTemplate

# What a task's own mistake, its data, or a chat template that refuses a question ends in.
MISTAKES = (OSError, TypeError, ValueError, KeyError, AttributeError, TemplateError)


@dataclass(frozen=True)
class Wanted:
    """What the harness is asked to measure."""

    tasks: tuple[str, ...]
    include_path: Path | None = None  # a folder of the user's tasks in YAML
    limit: int | None = None  # samples of a task
    num_fewshot: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False  # whether each question is a user's turn of a chat


def imported(module: str) -> Any:
    """One of its modules; an optional package, so no type checker knows it. ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError("--tasks needs lm-evaluation-harness: pip install 'pat-deepspeed[lm-eval]'") from None


def manager(wanted: Wanted) -> Any:
    """Its tasks, with those of the folder. ValueError for one that is not there."""
    folder = None if wanted.include_path is None else str(wanted.include_path)
    made = imported("lm_eval.tasks").TaskManager(include_path=folder)
    for name in wanted.tasks:
        if name not in made.all_tasks:
            nor = "" if folder is None else f", nor has {folder}"
            raise ValueError(
                f"--tasks {name}: lm-evaluation-harness has no such task{nor}{did_you_mean(name, made.all_tasks)}"
            )
    return made


def evaluate(wanted: Wanted, tasks: Any, one: Loaded, device: str, output: Path | None = None) -> dict[str, Any]:
    """Its results for one model; in `output`, its own files: results_DATE.json, and samples_TASK_DATE.jsonl.

    Data sets come from local files or the cache of Hugging Face, where HF_HUB_OFFLINE is set. Raises ValueError for a
    model that is no language model, or data that cannot be loaded.
    """
    if not prompts.generative(one):
        raise ValueError(
            f"{one.path} is not a causal language model, and --tasks is only for those: give recipe=NAME or --mix"
        )
    options = _ask_as_trained(one) if wanted.apply_chat_template else None
    tracker = None
    if output is not None:
        tracker = imported("lm_eval.loggers").EvaluationTracker(output_path=str(output / "results.json"))
    with _quiet():
        model = imported("lm_eval.models.huggingface").HFLM(
            pretrained=one.model,
            tokenizer=one.tokenizer,
            backend="causal",
            batch_size=wanted.batch_size,
            device=device,
            chat_template_args=options,
            add_bos_token=False if wanted.apply_chat_template else None,  # a template writes its own
        )
        try:
            found: Any = imported("lm_eval").simple_evaluate(
                model=model,
                model_args={"pretrained": str(one.path)},
                tasks=list(wanted.tasks),
                task_manager=tasks,
                num_fewshot=wanted.num_fewshot,
                batch_size=wanted.batch_size,
                limit=wanted.limit,
                apply_chat_template=wanted.apply_chat_template,
                fewshot_as_multiturn=wanted.apply_chat_template,
                log_samples=output is not None,
                evaluation_tracker=tracker,
            )
        except MISTAKES as error:
            said = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
            raise ValueError(f"--tasks {','.join(wanted.tasks)}: lm-evaluation-harness gave up: {said}") from error
        if tracker is not None and output is not None:
            _save(tracker, found, output)
    return found


def _ask_as_trained(one: Loaded) -> dict[str, Any]:
    """The variables for the chat template that the model was trained with; its template gets training's date."""
    if not one.tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {one.path} has no chat template: leave --apply-chat-template out")
    options = prompts.template_options(one.path)
    one.tokenizer.chat_template = ChatTemplate(one.tokenizer, options).source()
    return options


def table(found: Any) -> str:
    """Its own table, in Markdown."""
    with _quiet():
        return str(imported("lm_eval.utils").make_table(found)).strip()


def _save(tracker: Any, found: dict[str, Any], output: Path) -> None:
    """Its own files. The harness only warns where it cannot write, so their presence is checked."""
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.glob("results_*.json"))
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in found["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    if not set(output.glob("results_*.json")) - before:
        raise OSError(f"lm-evaluation-harness could not write its results into {output}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its log and its bars; everything of interest is in its results."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def names(folders: Sequence[Path]) -> list[str]:
    """A name for each model's folder of results, no two the same."""
    made: list[str] = []
    for path in folders:
        name = path.resolve().name or "model"
        number = 1
        while (own := name if number == 1 else f"{name}-{number}") in made:
            number += 1
        made.append(own)
    return made
