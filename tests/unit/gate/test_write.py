"""What a verdict looks like for CI when models and mixes hold markup, and figures are no numbers."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

from pat.envelope.judge import Check
from pat.gate import write
from pat.gate.verdict import Verdict

NAME = 'passed[name=<script>alert("1")</script>|`x`\x1b[31m].min'


def test_markup_stays_text_and_no_number_is_null() -> None:
    """Fails if a slice's name becomes HTML in a summary, breaks a table, drives a terminal or makes XML invalid."""
    check = Check(NAME, 0.9, "at least 0.9", math.nan, None, math.nan, (math.nan, math.nan), False)
    verdict = Verdict(False, [check], {"folder": "<b>", "weights_sha256": "w"}, None, {}, [], 0.95, True, 1.5)
    root = ET.fromstring(write.junit(verdict, now=0.0))
    case, suite = next(root.iter("testcase")), next(root.iter("testsuite"))
    assert case.attrib["name"] == NAME.replace("\x1b", "\ufffd") and suite.attrib["timestamp"] == "1970-01-01T00:00:00"
    text = write.markdown(verdict)
    row = text.splitlines()[-1]
    assert "<" not in text and "\x1b" not in text and row.replace("\\|", "").count("|") == 9
    said = json.loads(json.dumps(verdict.plain(), allow_nan=False))["checks"][0]
    assert (said["measured"], said["interval"]) == (None, [None, None])
