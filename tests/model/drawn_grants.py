"""Random histories of an account with grants, in the terms of `grants.ModelGrants`."""

from dataclasses import dataclass, field

from hypothesis import strategies as st
from model.grant_credits import Refused

DAY = 86_400


@dataclass(frozen=True)
class Step:
    """A request, a number of seconds after the one before.

    `of` picks the thing that it refers to among the earlier ones of that kind.
    """

    seconds: int
    call: str
    fields: dict[str, object] = field(default_factory=dict)
    of: int = 0


AMOUNTS = st.sampled_from([1, 1, 2, 3, 4, 5, 8])
# Lifetimes, holds and pauses share a few lengths, so that they end at the same instants.
LENGTHS = st.sampled_from([1, 2, 2, 3, 3, 5, 8, 13, DAY])
PAUSES = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 2, 3, 5])
PAYMENTS = tuple(f"pi_{number}" for number in range(1, 9))
GRACE = 6
PAID_MINOR = 7


def _of(call, optional=(), **fields):
    drawn = st.fixed_dictionaries(fields, optional=dict(optional))
    return st.builds(Step, PAUSES, st.just(call), drawn, st.integers(0, 3))


_REVERSE = _of(
    "reverse",
    reversal=st.sampled_from(["re_1", "re_2"]),
    revision=st.integers(1, 6),
    minor=st.integers(0, PAID_MINOR),
)


_SERIES = st.tuples(st.sampled_from(["plan", "plan", "pack"]), st.sampled_from([0, 2, 5]))
_PERIODS = st.sampled_from(["day", "day", "week", "month"])


def _steps(*, allowances):
    life = {
        "lasts": LENGTHS | st.sampled_from([0, -2]),
        "priority": st.sampled_from([10, 50, 50, 60]),
    }
    part = {"amount": st.none() | AMOUNTS}
    asked = [
        _of("purchase", life, amount=AMOUNTS, payment=st.none() | st.sampled_from(PAYMENTS)),
        _of("purchase", life, amount=AMOUNTS, payment=st.sampled_from(PAYMENTS), rollover=_SERIES),
        _of("grant", life, amount=AMOUNTS, paid=st.booleans()),
        _of("grant", life, amount=AMOUNTS),
        *[_of("spend", amount=AMOUNTS)] * 3,
        *[_of("hold", amount=AMOUNTS, ttl=LENGTHS)] * 3,
        *[_of("capture", overage=st.booleans(), **part)] * 3,
        _of("release"),
        _of("extend", ttl=LENGTHS),
        *[_of("refund", **part)] * 3,
        *[_REVERSE] * 3,
        _of("revoke"),
        _of("adjust", amount=AMOUNTS | AMOUNTS.map(lambda n: -n), allow_debt=st.booleans()),
        _of("look"),
    ]
    if allowances:
        asked.append(
            _of(
                "allowance",
                amount=st.sampled_from([0, 2, 5]),
                period=_PERIODS,
                carry_over=st.integers(0, 2),
            )
        )
    return st.one_of(*asked)


def races():
    """Steps that two services may get at once; times are those of the real clock."""
    lengths = st.sampled_from([1, 1, 2, 60])
    life = {"lasts": lengths, "priority": st.sampled_from([10, 50, 50, 60])}
    part = {"amount": st.none() | AMOUNTS}
    return st.one_of(
        _of("purchase", life, amount=AMOUNTS, payment=st.sampled_from(PAYMENTS)),
        _of(
            "purchase",
            amount=AMOUNTS,
            payment=st.sampled_from(PAYMENTS),
            lasts=lengths,
            rollover=_SERIES,
        ),
        _of("grant", life, amount=AMOUNTS),
        _of("grant", life, amount=AMOUNTS),
        _of("revoke"),
        _of("adjust", amount=AMOUNTS | AMOUNTS.map(lambda n: -n), allow_debt=st.booleans()),
        _of("allowance", amount=st.sampled_from([0, 2, 5]), period=_PERIODS),
        *[_of("spend", amount=AMOUNTS)] * 2,
        *[_of("hold", amount=AMOUNTS, ttl=lengths)] * 2,
        *[_of("capture", overage=st.booleans(), **part)] * 2,
        _of("release"),
        *[_of("refund", **part)] * 2,
        _REVERSE,
    )


def _purchase(payment, amount, **life):
    return Step(0, "purchase", {"amount": amount, "payment": payment, **life})


# Most histories are about bought, granted and held credits, some of which are spent.
_OPENINGS = (
    [],
    [_purchase("pi_1", 8, lasts=8), Step(0, "spend", {"amount": 5}), _purchase("pi_2", 4)],
    [
        _purchase("pi_1", 5, lasts=5),
        Step(0, "hold", {"amount": 3, "ttl": 8}),
        Step(0, "grant", {"amount": 4, "lasts": 8}),
        Step(0, "hold", {"amount": 3, "ttl": 13}),
        _purchase("pi_2", 3),
        Step(1, "reverse", {"reversal": "re_1", "revision": 1, "minor": 5}, of=1),
    ],
    [
        _purchase("pi_2", 4),
        Step(0, "spend", {"amount": 4}),
        Step(0, "grant", {"amount": 4, "lasts": 3}),
        Step(0, "hold", {"amount": 4, "ttl": 5}),
        Step(0, "reverse", {"reversal": "re_1", "revision": 1, "minor": PAID_MINOR}),
        _purchase("pi_1", 8, lasts=8, rollover=("plan", 2)),
    ],
    [
        _purchase("pi_1", 8, lasts=8),
        _purchase("pi_3", 8, lasts=13, priority=60),
        Step(0, "spend", {"amount": 8}),
        Step(0, "spend", {"amount": 4}),
        Step(0, "reverse", {"reversal": "re_1", "revision": 1, "minor": PAID_MINOR}, of=1),
    ],
)


def histories(*, allowances=False, shortest=10, longest=40):
    """Lists of steps; the floor is drawn separately."""
    steps = st.lists(_steps(allowances=allowances), min_size=shortest, max_size=longest)
    return st.builds(list.__add__, st.sampled_from(_OPENINGS), steps)


FLOORS = st.sampled_from([0, 0, -3, -10])

_REFERS = {
    "capture": ("hold", "hold"),
    "release": ("hold", "hold"),
    "extend": ("hold", "hold"),
    "refund": ("line", "spent"),
    "revoke": ("grant", "grant"),
    "reverse": ("payment", "payment"),
}


class Told:
    """Gives a history to a model, step by step, and knows what later steps may refer to.

    `made` lists, by kind, the seqs of the model's entries: holds, spends and captures, grants,
    and the payments that it was given. Another run of the same history keeps its own lists.
    """

    def __init__(self, model):
        self.model = model
        self.now = 0
        self.made = {"hold": [], "spent": [], "payment": []}

    def request(self, step):
        """The fields of a step's request; its references are places in `made`.

        Returns:
            None if there is nothing yet to refer to.
        """
        fields = {name: value for name, value in step.fields.items() if value is not None}
        if step.call in _REFERS:
            name, kind = _REFERS[step.call]
            many = len(self.model.grants if kind == "grant" else self.made[kind])
            if not many:
                return None
            fields[name] = many - 1 - step.of % min(many, 4)
        if "lasts" in fields:
            fields["expire"] = self.now + fields.pop("lasts")
        if "rollover" in fields and "expire" not in fields:
            fields["expire"] = self.now + DAY
        if step.call == "reverse":
            fields["paid"] = PAID_MINOR
        return fields

    def named(self, call, fields):
        """The same fields with the model's own names for the references."""
        if call not in _REFERS:
            return fields
        name, kind = _REFERS[call]
        made = list(self.model.grants) if kind == "grant" else self.made[kind]
        return fields | {name: made[fields[name]]}

    def tell(self, step):
        """Carries out a step.

        Returns:
            Its fields with places, and the reason of its refusal (None if it succeeded); or None
            if the step refers to nothing.
        """
        self.now += step.seconds
        if step.call == "look":
            self.model.look(self.now, posts_allowance=False)
            return {}, None
        fields = self.request(step)
        if fields is None:
            return None
        try:
            line = self.model.take(step.call, self.now, **self.named(step.call, fields))
        except Refused as refused:
            return fields, refused.reason
        if step.call == "hold":
            self.made["hold"].append(line.seq)
        elif step.call == "spend" or (step.call == "capture" and line is not None):
            self.made["spent"].append(line.seq)
        elif step.call == "purchase" and fields.get("payment") not in {None, *self.made["payment"]}:
            self.made["payment"].append(fields["payment"])
        return fields, None
