"""The lines of the table: a value, its comparison, and whether it reaches its target."""

from __future__ import annotations

import operator
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark import measuring

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmark.measuring import Sample

_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a value.

    Attributes:
        relation: one of >=, <= and <.
        bound: in the unit of the value.
    """

    relation: str
    bound: float

    def met_by(self, value: float) -> bool:
        """Returns whether a value reaches it."""
        return _HOLDS[self.relation](value, self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table.

    Attributes:
        row: the name that `--only` takes.
        measured: what was measured.
        against: what it is compared with; empty: nothing.
        value: the figure; None: it could not be measured here, and the note says why.
        unit: of the value; empty for a ratio.
        target: what to reach; None: the value is only reported.
        note: the figures behind the value.
        failed: calls that failed on either side, by load, status code and reason.
    """

    row: str
    measured: str
    value: float | None
    against: str = ""
    unit: str = ""
    target: Target | None = None
    note: str = ""
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One of met, missed, reported, not measured, and calls failed, which voids the value."""
        if self.failed:
            return "calls failed"
        if self.value is None:
            return "not measured"
        if self.target is None:
            return "reported"
        return "met" if self.target.met_by(self.value) else "missed"


def at_least(bound: float) -> Target:
    """Makes the target of a value that should be great."""
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    """Makes the target of a value that should be small."""
    return Target("<=", bound)


def below(bound: float) -> Target:
    """Makes the target of a value that should be smaller than the bound."""
    return Target("<", bound)


def compared(
    row: str,
    samples: Mapping[str, list[Sample]],
    name: str,
    other: str,
    *,
    target: Target | None = None,
    cost: bool = False,
) -> Line:
    """Makes the line that compares the rates of two loads.

    Args:
        row: the name that `--only` takes.
        samples: of all loads, by name.
        name: what is measured.
        other: what it is measured against.
        target: what to reach.
        cost: the value is the time that a unit takes and not the rate.
    """
    one, two = samples[name], samples[other]
    found = measuring.ratio(two, one) if cost else measuring.ratio(one, two)
    note = (
        f"{measuring.middle_rate(one):,.0f}/s : {measuring.middle_rate(two):,.0f}/s;"
        f" turns {found.least:.2f} to {found.greatest:.2f}; {busy(one, two)}"
    )
    return Line(
        row=row,
        measured=name + (", time" if cost else ""),
        against=other,
        value=found.middle,
        target=target,
        note=note,
        failed=measuring.failures({name: one, other: two}),
    )


def busy(*sides: list[Sample]) -> str:
    """Renders how busy each part was, and whether the load generator was the bottleneck."""

    def share(part: Callable[[Sample], float]) -> str:
        medians = (statistics.median(map(part, samples)) for samples in sides)
        return " : ".join(f"{median:.0%}" for median in medians)

    greatest = max(sample.generator for samples in sides for sample in samples)
    warning = " (THE BOTTLENECK)" if greatest >= measuring.GENERATOR_FULL else ""
    return (
        f"server {share(lambda sample: sample.server)},"
        f" database {share(lambda sample: sample.database)},"
        f" generator {share(lambda sample: sample.generator)}{warning}"
    )
