"""From a file to a mix, and back: JSONL (a prompt a line) or YAML. One sentence for each mistake, with its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pat.common.errors import invalid
from pat.common.files import write_atomic
from pat.common.keys import Section
from pat.common.text import did_you_mean
from pat.common.yaml_files import read_yaml
from pat.prompts.mix import Head, Mix, Prompt, content_id, shared
from pat.prompts.suites import expanded, groups, of_roots

MIXES = Path(__file__).parent / "mixes"
YAML = (".yaml", ".yml")
AnySection = TypeVar("AnySection", bound=Section)


def shipped() -> list[str]:
    """The names of the mixes that come with `pat`."""
    return sorted(path.stem for path in MIXES.glob("*.jsonl"))


def find(name: str) -> Path:
    """The file of that path, or of the mix of that name that comes with `pat`. Raises ValueError."""
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return MIXES / f"{name}.jsonl"
    raise ValueError(
        f"there is no file {name}, and no mix of that name: give a JSONL or YAML file, or one of "
        f"{', '.join(shipped())}{did_you_mean(name, shipped())}"
    )


def read(path: Path, allow_code: bool = False, checked: bool = True) -> Mix:
    """The mix in a file. ValueError names the line, or the prompt, and what is wrong there.

    allow_code: whether checks in Python are loaded and run. A reference that fails its own prompt's checks is an error.
    checked: False where nothing will be checked, as where only times are measured: then no check is loaded.
    """
    head, settled, prompts, places = Head(), False, list[Prompt](), dict[str, str]()
    for place, item in _items(path):
        try:
            if isinstance(item, Mapping) and set(item) == {"mix"}:
                if prompts:
                    raise ValueError("the mix's own settings must come first")
                if settled:
                    raise ValueError("the mix's own settings are there twice: put all of them into one `mix`")
                settled = True
                head = parsed(item["mix"], Head)
                continue
            prompt = parsed(item, Prompt)
            prompt = prompt if prompt.id else prompt.changed(id=content_id(prompt))
            for each in expanded(prompt, head.suites):
                if each.id in places:
                    raise ValueError(
                        f"the prompt {each.id} is in {places[each.id]}, too: give it a weight, or another id"
                    )
                if checked:
                    _try_checks(each, path.parent, allow_code)
                places[each.id] = place
                prompts.append(each)
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from None
    if not prompts:
        raise ValueError(f'{path} has no prompts: write one per line, as {{"prompt": "..."}}')
    try:
        groups(prompts)
        return Mix(head, path, tuple(shared(of_roots(prompts), head.weights)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(path: Path, head: Head, prompts: Sequence[Prompt]) -> None:
    """A JSONL file; defaults are left out."""
    lines = [{"mix": {"format": head.format, **_said(head)}}, *map(_said, prompts)]
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def json_lines(
    path: Path, torn: Callable[[int], None] | None = None, bad: Callable[[str], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """(line number from 1, what it holds) of each line that is not empty. Raises ValueError.

    torn: called instead of an error for an incomplete last line, as in a log that is being written; bad: for any other
    line that is not JSON, with the sentence of the error.
    """
    if path.suffix in (".csv", ".tsv"):
        raise ValueError(
            f"{path} is a table, and only `pat prompts from-logs` reads these: give JSON, a mapping a line"
        )
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    content = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if b"\\ud" in line.lower():  # of a surrogate pair
                        json.dumps(content, ensure_ascii=False).encode()
                    yield number, content
                except (ValueError, RecursionError) as error:
                    if torn is not None and not line.endswith(b"\n"):
                        return torn(number)
                    what = f"JSON: {error}"
                    if isinstance(error, UnicodeDecodeError):
                        what = "UTF-8: convert the file"
                    elif isinstance(error, UnicodeEncodeError):  # as of a text that was cut within an emoji
                        what = f"text: {error.object[error.start]!a} is half of a character"
                    sentence = f"{path}, line {number} is not {what}"
                    if bad is None:
                        raise ValueError(sentence) from None
                    bad(sentence)


def parsed(item: Any, model: type[AnySection]) -> AnySection:
    """A prompt, or a mix's settings, from plain values. Raises ValueError."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{str(item)[:60]!r} must be a mapping of keys")
    try:
        return model.model_validate(dict(item))
    except ValidationError as error:
        # A fault of the whole has no key, and its sentence no name before it.
        raise ValueError(invalid(error, model).removeprefix(": ")) from None


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, content) of the mix's settings, if there are any, and of each prompt."""
    if path.suffix not in (".jsonl", *YAML):
        raise ValueError(
            f"{path} must end in .jsonl, {' or '.join(YAML)}; `pat prompts from-logs` makes a mix of rows in a .csv"
        )
    if path.suffix == ".jsonl":
        yield from ((f"line {number}", item) for number, item in json_lines(path))
        return
    content = read_yaml(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("prompts"), list):
        raise ValueError(f"{path} must hold `mix: {{...}}` and `prompts: [...]`")
    unknown = [str(key) for key in content if key not in ("mix", "prompts")]
    if unknown:
        raise ValueError(f"{path} has the key {unknown[0]!r} at the top: allowed are mix, prompts")
    if "mix" in content:
        yield "mix", {"mix": content["mix"]}
    yield from ((f"prompt {number}", item) for number, item in enumerate(content["prompts"], 1))


def _try_checks(prompt: Prompt, folder: Path, allow_code: bool) -> None:
    """ValueError where a check cannot be run, or the reference does not pass."""
    for check in prompt.checks:
        check.ready(folder, allow_code)
    why = prompt.failure(prompt.reference) if prompt.reference is not None else None
    if why:
        raise ValueError(f"the reference fails the prompt's own checks: {why}")


def _said(section: Section) -> dict[str, Any]:
    """Plain values without empty ones and defaults."""
    said = section.model_dump(exclude_defaults=True, warnings=False)
    return {key: value for key, value in said.items() if value != []}
