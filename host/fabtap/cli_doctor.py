"""`fabtap doctor`: what is wrong with this installation, and how is it mended?"""
import typer

from fabtap.cli_options import LAB_DEFAULT, AsJson, LabFile
from fabtap.doctor import OK, WARN, WRONG, Finding, examine
from fabtap.screen import OUT, show_json, table

MARKS = {OK: "ok", WARN: "warn", WRONG: "WRONG"}


def doctor(lab_file: LabFile = LAB_DEFAULT, as_json: AsJson = False) -> None:
    """Say what is wrong with this installation and how to mend it. Exit code: 0 all well or only warnings, 1 something is wrong."""
    found = list(examine(lab_file))
    wrong = sum(finding.state == WRONG for finding in found)
    if as_json:
        show_json({"ok": not wrong, "checks": [finding._asdict() for finding in found]})
    else:
        OUT.print(table("FabTap's health", ("", "check", "found"),
                        [(MARKS[finding.state], finding.name, _said(finding)) for finding in found]))
        OUT.print(_summary(found), highlight=False)
    if wrong:
        raise typer.Exit(1)


def _said(finding: Finding) -> str:
    return f"{finding.what}\n→ {finding.mend}" if finding.mend else finding.what


def _summary(found: list[Finding]) -> str:
    wrong, warnings = (sum(finding.state == state for finding in found) for state in (WRONG, WARN))
    if wrong or warnings:
        return f"{wrong} wrong, {warnings} warning(s). What to do stands behind the arrows."
    return "All well."
