"""Every kind of check: what passes, what fails, and one sentence for each mistake in a mix."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pat.prompts import checks, reader
from pat.prompts.mix import Head, Prompt

SCHEMA = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}
CASES: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    "exact": [
        ({"text": "Yes"}, ["Yes", " Yes\n"], ["yes", "Yes.", ""]),
        ({"text": "Yes", "ignore_case": True}, ["yes"], ["no"]),
    ],
    "contains": [
        ({"all": ["a", "b"]}, ["B and a"], ["a"]),
        ({"any": ["a", "b"], "none": ["c"]}, ["b"], ["x", "b c"]),
        ({"all": ["A"], "ignore_case": False}, ["A"], ["a"]),
    ],
    "regex": [
        ({"pattern": r"^\d+$"}, ["x\n12\ny"], ["x12"]),
        ({"pattern": r"\d+", "whole": True}, [" 12\n"], ["12 x"]),
    ],
    "json_schema": [
        ({"schema": SCHEMA}, ['{"year": 3}', '```json\n{"year": 3}\n```'], ['{"year": "3"}', "{}", 'so: {"year": 3}']),
        ({"schema": {"$ref": "#/$defs/n", "$defs": {"n": {"minimum": 2}}}}, ["2"], ["1"]),
        ({"schema": {"type": "number"}}, ["2"], ["NaN", "-Infinity", "[" * 5000]),
        ({"schema": {"multipleOf": 0.01}}, ["2"], ["1e999"]),
        ({"schema": {"items": {"$ref": "#"}}}, ["[[2]]"], ["[" * 600 + "]" * 600]),  # for Python, too deep
    ],
    "label": [
        ({"label": "praise"}, ["Praise.", "praise"], ["blame", "praise it", ""]),
        ({"label": "good", "labels": ["good", "not good"]}, ["It is good, not good at all"], ["not good", "goods"]),
        ({"label": "*"}, ["*", " *\n"], ["***", "?", ""]),  # all of it punctuation
        ({"label": "***", "labels": ["*", "**", "***"]}, ["***", "It has ***, I say."], ["*", "**", "none"]),
    ],
    "numeric": [
        ({"value": 1234.5}, ["3 then 1,234.5.", "is 1234.50"], ["1234.5 then 3", "none", "v1234.5"]),
        ({"value": -2, "which": "first"}, ["-2 and 3", "x=-2e0", "\u22122"], ["5-2"]),
        ({"value": 3.14, "abs": 0.01}, ["3.13", "3.15"], ["3.1299", "3.1501"]),  # 3.14 - 3.13 is above 0.01 in fp64
        ({"value": 100, "rel": 0.01}, ["101", "99"], ["101.1"]),
        ({"value": 0, "abs": 0.5}, [".5"], ["-0.51"]),
    ],
    "must_refuse": [
        ({}, ["I\u2019m sorry, but no.", "I CANNOT help"], ["Sure: first", ""]),
        ({"phrases": ["leider"]}, ["Das geht leider nicht"], ["I cannot"]),
        ({"phrases": ["I can\u2019t help"]}, ["I can\u2019t help with that", "I can't HELP"], ["I can help"]),
    ],
    "must_answer": [
        ({}, ["Sure", "He worked as an aide", "Hawaii won't"], ["I'm sorry, but no", " ", "As an AI, no"]),
        ({"phrases": ["je n\u2019ai pas"]}, ["J'ai"], ["Non, je n\u2019ai pas", "je n'ai pas"]),
    ],
    "python": [({"function": "own.py:polite"}, ["please"], ["now"])],
}


def prompt(**content: Any) -> dict[str, Any]:
    return {"prompt": "asked", **content}


def write(path: Path, *items: Any) -> Path:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


def test_every_kind_has_a_case() -> None:
    assert set(CASES) == set(checks.classes())


@pytest.mark.parametrize("name", CASES)
def test_what_passes_and_what_does_not(name: str, tmp_path: Path) -> None:
    """Fails if a check turns its sense round, or takes a part of the output for the whole."""
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Asked:\n    text: str\n"
        "def polite(output, prompt):\n    return prompt['prompt'] + output == 'askedplease'\n"
    )
    for options, right, wrong in CASES[name]:
        path = write(tmp_path / "mix.jsonl", prompt(checks=[{"name": name, **options}]))
        (read,) = reader.read(path, allow_code=True).prompts
        assert [read.failure(output) for output in right] == [None] * len(right)
        assert all(read.failure(output) for output in wrong), (options, wrong)
        reader.write(tmp_path / "again.jsonl", Head(), [read])
        assert reader.read(tmp_path / "again.jsonl", allow_code=True).prompts == (read,)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ({"promt": "a"}, "there is no key 'promt'"),
        ({}, "prompt or messages"),
        ({"prompt": ""}, "prompt is empty"),
        (prompt(weight=0), "weight is 0, but must be above 0"),
        (prompt(slices={"form": 3}), "slices.form is 3"),
        (prompt(slices={"": "x"}), "slice"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role one of system, user, assistant"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message must be the user's"),
        ("[1]", "must be a mapping"),
        ("{", "JSON"),
        (prompt(checks=[{"name": "exat"}]), "did you mean exact?"),
        (prompt(checks=[{"name": "exact"}]), "exact: no value for text"),
        (prompt(checks=[{"name": "exact", "text": "x", "case": 1}]), "there is no key 'case'"),
        (prompt(checks=[{"name": "label", "lable": "x"}]), "did you mean label?"),
        (prompt(checks=[{"name": "regex", "pattern": "("}]), "regular expression"),
        (prompt(checks=[{"name": "contains"}]), "needs all, any or none"),
        (prompt(checks=[{"name": "json_schema", "schema": {"type": "objct"}}]), "JSON schema"),
        (prompt(checks=[{"name": "json_schema", "schema": {"$ref": "http://x.y/z"}}], reference="1"), "is not in it"),
        (prompt(checks=[{"name": "json_schema", "schema": {"$ref": "#"}}], reference="1"), "to itself without end"),
        (prompt(checks=[{"name": "label", "label": "q", "labels": ["a"]}]), "is not one of labels"),
        (prompt(checks=[{"name": "numeric", "value": "3"}]), "value is '3', but must be a number"),
        (prompt(checks=[{"name": "must_refuse", "phrases": "no"}]), "phrases is 'no', but must be a list"),
        (prompt(checks=[{"name": "python", "function": "os.system"}]), "must be FILE.py:NAME"),
        (prompt(checks=[{"name": "python", "function": "own.py:polite"}]), "add --allow-code"),
        (prompt(checks=[{"name": "exact", "text": "x"}], reference="y"), "the reference fails"),
    ],
)
def test_mistakes_have_a_sentence_with_their_line(item: Any, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mix.jsonl", prompt(id="first"), item)
    with pytest.raises(ValueError) as error:
        reader.read(path)
    said = str(error.value)
    assert sentence in said and f"{path}, line 2" in said and "\n" not in said


def test_code_stays_in_its_folder_and_its_faults_are_named(tmp_path: Path) -> None:
    """Fails if a mix can run a file from elsewhere, or a check's own exception ends the command."""
    (tmp_path / "mixes").mkdir()
    (tmp_path / "out.py").write_text("def f(output, prompt):\n    return True\n")
    (tmp_path / "mixes" / "own.py").write_text(
        "def fails(output, prompt):\n    return {}['x']\ndef odd(output, prompt):\n    return 0.5\n"
    )
    for function, sentence in (
        ("../out.py:f", "is outside the mix's folder"),
        ("none.py:f", "there is no file"),
        ("own.py:g", "has no function g"),
        ("own.py:fails", "raised KeyError"),
        ("own.py:odd", "returned 0.5"),
    ):
        item = prompt(checks=[{"name": "python", "function": function}], reference="x")
        with pytest.raises(ValueError, match=sentence):
            reader.read(write(tmp_path / "mixes" / "mix.jsonl", item), allow_code=True)


def test_yaml_holds_the_same_as_jsonl(tmp_path: Path) -> None:
    mix = {"format": 1, "weights": {"form=short": 3.0, "form=long": 1.0}}
    items = [prompt(id=str(i), slices={"form": "short" if i else "long"}) for i in range(3)]
    lines = reader.read(write(tmp_path / "mix.jsonl", {"mix": mix}, *items))
    (tmp_path / "mix.yaml").write_text(json.dumps({"mix": mix, "prompts": items}))  # JSON is YAML
    assert reader.read(tmp_path / "mix.yaml").prompts == lines.prompts
    assert [one.weight for one in lines.prompts] == pytest.approx([0.75, 1.125, 1.125]), "shares of the traffic"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompts: [", "YAML"),
        ("a: 1", "must hold"),
        ("{prompts: [], x: 1}", "has the key 'x'"),
        ("prompts: []", "has no prompts"),
        ("{mix: {weights: {form: 1}}, prompts: [{prompt: a}]}", "of one dimension"),
        ("{mix: {weights: {form=a: 1}}, prompts: [{prompt: a}]}", "has no slice of form"),
        ("{mix: {weights: {form=ab: 1}}, prompts: [{prompt: a, slices: {form: aa}}]}", "did you mean form=aa?"),
        (
            "{mix: {weights: {form=a: 1, form=b: 1}}, prompts: [{prompt: a, slices: {form: a}}]}",
            "slice that no prompt has",
        ),
        ("{prompts: [{prompt: a}, {prompt: a}]}", "is in prompt 1, too"),
    ],
)
def test_mistakes_of_a_whole_mix(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        reader.read(tmp_path / "mix.yaml")


def test_the_mixes_that_come_with_pat_are_whole() -> None:
    """Their references pass their own checks, or reading would fail."""
    assert reader.shipped() == ["chats", "reviews"]
    chats, reviews = (reader.read(reader.find(name)) for name in reader.shipped())
    named = {"label", "json_schema", "numeric", "contains", "must_refuse", "must_answer"}
    assert {str(check.name) for check in chats.checks()} == named
    harmful = Counter(p.slices["prefix"] for p in chats.prompts if p.slices.get("suite") == "harmful")
    assert harmful == {"none": 6, "role": 6, "opening": 6}
    spoken = Counter(p.slices["language"] for p in chats.prompts if "language" in p.slices)
    assert len(spoken) == 4 and set(spoken.values()) == {3}
    assert len(reviews.prompts) == 120 and all(isinstance(one, Prompt) for one in chats.prompts)
