"""The doctor's findings as one page, or as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from arvrm.doctor.findings import Finding
from arvrm.doctor.traps import TRAPS

_WORDS = {"good": "good", "wrong": "WRONG", "unknown": "?", "note": "note"}
_WIDTH = 118


def as_page(findings: Sequence[Finding]) -> str:
    """Return the page, lines of at most 118 letters."""
    lines, part = [], None
    for finding in findings:
        if finding.part != part:
            part = finding.part
            lines += ["", part]
        lines += _row(_WORDS[finding.status], finding.about, finding.text)
    lines += ["", "known traps"]
    for name, text in TRAPS:
        lines += _row("", name, text)
    counts = {status: sum(finding.status == status for finding in findings) for status in _WORDS}
    lines += ["", f"{counts['good']} good, {counts['wrong']} wrong, {counts['unknown']} not looked at"]
    return "\n".join(lines[1:]) + "\n"


def as_json(findings: Sequence[Finding]) -> str:
    """Return {"findings": [...], "traps": {name: text}, "wrong": count}."""
    wrong = sum(finding.status == "wrong" for finding in findings)
    return json.dumps({"findings": [*map(asdict, findings)], "traps": dict(TRAPS), "wrong": wrong}, indent=1)


def _row(status: str, about: str, text: str) -> list[str]:
    head = f"  {status:5} {about:13} "
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
