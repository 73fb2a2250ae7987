"""The table for people, a Markdown one that also reads well as it is, and the JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmark.lines import Line
    from benchmark.testbed import Extent

_HEAD = ("measured", "against", "value", "to reach", "verdict", "figures")
# The share of the processors that others may use on a quiet machine.
_QUIET = 0.1

_LEGEND = (
    "A ratio is the median of the turns' own ratios, a rate the median of the turns."
    " Percentages are of one processor: 100% of a server process is all it can have."
)

_NUMBER_COLUMNS = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings of a run.

    Attributes:
        extent: how much was measured.
        machine: facts about the machine and the commit.
        database: settings of the database.
        lines: of the table.
        verified: the output of `credit-service verify` for each database.
        book_adds_up: whether it found nothing.
        others: the part of all processors that other programs used during the run, 0 to 1.
        seconds: how long the run took.
    """

    extent: Extent
    machine: Mapping[str, str]
    database: Mapping[str, str]
    lines: list[Line]
    verified: Mapping[str, str]
    book_adds_up: bool
    others: float
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the figures can be trusted: the book adds up and no call failed."""
        return self.book_adds_up and not any(line.failed for line in self.lines)

    def text(self) -> str:
        """Renders the report for people."""
        quiet = "" if self.others < _QUIET else ": NOT QUIET, so distrust the figures"
        facts = {
            **self.machine,
            "others": f"used {self.others:.0%} of the processors meanwhile{quiet}",
            "database": _settings(self.database),
            "run": self._run(),
        }
        width = max(map(len, facts))
        counted = Counter(line.verdict for line in self.lines)
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
        return "\n".join(
            (
                *(f"{name:<{width}}  {fact}" for name, fact in facts.items()),
                "",
                *table(self.lines),
                "",
                _LEGEND,
                verdicts,
                *(f"{database}: {said}" for database, said in self.verified.items()),
            )
        )

    def _run(self) -> str:
        extent = self.extent
        return (
            f"{'full' if extent.full else 'short'}: {extent.turns} turns of {extent.seconds:g} s,"
            f" {extent.users:,} users, {extent.clients} client processes, {self.seconds:.0f} s"
        )

    def json(self) -> str:
        """Renders the report for programs."""
        lines = [{**asdict(line), "verdict": line.verdict} for line in self.lines]
        return json.dumps(
            {
                "machine": self.machine,
                "database": self.database,
                "others": round(self.others, 3),
                "extent": asdict(self.extent),
                "seconds": round(self.seconds, 1),
                "rows": lines,
                "verified": self.verified,
                "book_adds_up": self.book_adds_up,
            },
            indent=2,
        )


def _settings(database: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in database.items())


def _cells(line: Line) -> tuple[str, ...]:
    target = line.target
    note = line.note
    if line.failed:
        note = "; ".join(f"{count} x {name}" for name, count in line.failed.items())
    return (
        line.measured,
        line.against,
        "" if line.value is None else _number(line.value, line.unit),
        "" if target is None else f"{target.relation} {_number(target.bound, line.unit)}",
        line.verdict,
        note,
    )


def _number(value: float, unit: str) -> str:
    """Renders a ratio with two places, a figure with a unit with as many as it needs."""
    if not unit:
        return f"{value:.2f}"
    text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"  # noqa: PLR2004
    return f"{text}{'' if unit == '/s' else ' '}{unit}"


def table(lines: list[Line]) -> list[str]:
    """Renders measured lines for people, each in one line of text."""
    rows = [_HEAD, *map(_cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def written(row: tuple[str, ...]) -> str:
        cells = (
            f"{cell:>{width}}" if place in _NUMBER_COLUMNS else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rules = (
        "-" * (width - 1) + ":" if place in _NUMBER_COLUMNS else "-" * width
        for place, width in enumerate(widths)
    )
    head, *body = rows
    return [written(head), f"| {' | '.join(rules)} |", *map(written, body)]
