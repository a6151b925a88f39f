"""The audit of the paper's code as a table: each artefact, their way beside ours."""

from collections.abc import Sequence

from segregation.scores.audit import Finding
from segregation.scores.statistics import Interval


def audit_markdown(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table, a row each.

    >>> finding = Finding("first copy", "m", "share", "one", "both", Interval(0.5, 0.25, 0.75, 10), None, "why")
    >>> print(audit_markdown([finding]))
    | artefact | model | quantity | their way | | our way | | n | |
    |---|---|---|---|---|---|---|---|---|
    | first copy | m | share | one | 0.5 [0.25, 0.75] | both | - | 10 | why |
    """
    lines = ["| artefact | model | quantity | their way | | our way | | n | |", "|" + "---|" * 9]
    for finding in findings:
        n = max((found.n for found in (finding.at_theirs, finding.at_ours) if found), default=0)
        cells = [
            *(finding.artefact, finding.model, finding.quantity, finding.theirs, _value(finding.at_theirs)),
            *(finding.ours, _value(finding.at_ours), str(n) if n else "-", finding.note),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _value(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
