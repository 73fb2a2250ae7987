"""Rows of the model of growth in docs/performance.md: measured rates against predicted ones.

The model: every spend costs processor time, and every transaction costs some more, which the spends
of its batch share. So a spend costs `each + transaction / batch`, over clients, service and
database, and a machine does as many as its processors have time for. A batch gathers while the
batch before it is written: its share of the calls in flight is that of its lane among all lanes.

The two costs are found from one lane and from eight; four lanes and two processes are predicted.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from benchmark import book
from benchmark.lines import Line
from benchmark.measuring import failures, middle_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmark.measuring import Sample
    from benchmark.testbed import Testbed

_ROW = "model"
_IN_FLIGHT = 100
# The kernel distributes connections over the processes, so there must be several.
_CONNECTIONS = 8
_BASE, _WIDEST = "one process, one lane", "one process, eight lanes"


class Deployment(NamedTuple):
    """How the service is run: processes, and lanes of each."""

    processes: int
    lanes: int

    @property
    def writers(self) -> int:
        """Lanes of all processes."""
        return self.processes * self.lanes


_DEPLOYMENTS = {
    _BASE: Deployment(1, 1),
    _WIDEST: Deployment(1, 8),
    "one process, four lanes": Deployment(1, 4),
    "two processes, one lane each": Deployment(2, 1),
}


@dataclass(frozen=True, slots=True)
class Costs:
    """The parameters of the model, in microseconds of processor time and in processors.

    Attributes:
        each: of a spend, independent of its batch.
        transaction: of a transaction.
        batch: spends in a transaction where there is one lane.
        processors: that were used.
    """

    each: float
    transaction: float
    batch: float
    processors: float

    def rate(self, deployment: Deployment) -> float:
        """Predicts the spends per second of a deployment on the same machine."""
        batch = max(1.0, self.batch / deployment.writers)
        return self.processors * 1e6 / (self.each + self.transaction / batch)


class Measured(NamedTuple):
    """A deployment under load: spends per second, their cost (us), spends in a transaction."""

    rate: float
    cost: float
    batch: float


def costs(one: Measured, wide: Measured) -> Costs:
    """Finds the costs from a deployment with one lane and from one with several."""
    transaction = (wide.cost - one.cost) / (1 / wide.batch - 1 / one.batch)
    return Costs(
        each=one.cost - transaction / one.batch,
        transaction=transaction,
        batch=one.batch,
        processors=one.rate * one.cost / 1e6,
    )


def growth(testbed: Testbed) -> list[Line]:
    """Measures the deployments in turns, and compares those that the model predicts."""
    transactions: dict[str, list[int]] = {name: [] for name in _DEPLOYMENTS}
    with ExitStack() as stack:
        loads = {}
        for name, deployment in _DEPLOYMENTS.items():
            service = stack.enter_context(
                testbed.another_service(
                    f"model-{deployment.processes}-{deployment.lanes}",
                    *([f"--processes={deployment.processes}"] if deployment.processes > 1 else []),
                    CREDIT_LISTEN=f"127.0.0.1:{_free_port()}",
                    CREDIT_LANES=str(deployment.lanes),
                )
            )
            load = testbed.load(service, "spend", _IN_FLIGHT, connections=_CONNECTIONS)
            loads[name] = _counting(load, testbed.cluster.owner_url, transactions[name])
        samples = testbed.in_turns(loads)
    found = {
        # The first count is that of the warm-up.
        name: _measured(samples[name], transactions[name][1:], testbed.extent.seconds)
        for name in _DEPLOYMENTS
    }
    model = costs(found[_BASE], found[_WIDEST])
    return [_known(model, found, samples)] + [
        _compared(name, model.rate(deployment), found[name], samples)
        for name, deployment in _DEPLOYMENTS.items()
        if name not in {_BASE, _WIDEST}
    ]


def _measured(samples: list[Sample], transactions: list[int], seconds: float) -> Measured:
    batches = [
        sample.rate * seconds / max(1, count)
        for sample, count in zip(samples, transactions, strict=True)
    ]
    each = [sample.server_us + sample.database_us + sample.clients_us for sample in samples]
    return Measured(middle_rate(samples), statistics.median(each), statistics.median(batches))


def _known(
    model: Costs, found: Mapping[str, Measured], samples: Mapping[str, list[Sample]]
) -> Line:
    one, wide = found[_BASE], found[_WIDEST]
    note = (
        f"{model.transaction:.0f} us a transaction, {model.processors:.2f} processors;"
        f" one lane {one.rate:,.0f}/s at {one.cost:.0f} us, {one.batch:.1f} a transaction;"
        f" eight lanes {wide.rate:,.0f}/s at {wide.cost:.0f} us, {wide.batch:.1f} a transaction"
    )
    return Line(
        row=_ROW,
        measured="processor time of a spend but for its transaction",
        value=model.each,
        unit="us",
        note=note,
        failed=failures({name: samples[name] for name in (_BASE, _WIDEST)}),
    )


def _compared(
    name: str, predicted: float, measured: Measured, samples: Mapping[str, list[Sample]]
) -> Line:
    note = (
        f"{measured.rate:,.0f}/s : {predicted:,.0f}/s;"
        f" {measured.cost:.0f} us, {measured.batch:.1f} a transaction"
    )
    return Line(
        row=_ROW,
        measured=name,
        against="predicted by the model",
        value=measured.rate / predicted,
        note=note,
        failed=failures({name: samples[name]}),
    )


def _counting(
    load: Callable[[float], Sample], owner_url: str, counts: list[int]
) -> Callable[[float], Sample]:
    def run(seconds: float) -> Sample:
        before = asyncio.run(book.transactions(owner_url))
        sample = load(seconds)
        counts.append(asyncio.run(book.transactions(owner_url)) - before)
        return sample

    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
