"""Two services on one book against the model of single credits: random requests, all at once.

The book has the order of their decisions; the model takes them in that order, and both must end in
the same grants. Every moment of the account is read again afterwards, by `as_of`. Every ordinary
run draws the same requests (derandomized); they interleave at random.
"""

import asyncio
import copy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.extent import extent
from kit.services import running, server_settings
from model.drawn_grants import PAID_MINOR, races
from model.grant_credits import SINCE
from model.grant_law import require_the_law
from model.grants import ModelGrants

from credit_service.errors import CreditError, Refusal
from credit_service.ledger.verify import verify
from credit_service.rules.model import transaction_id
from credit_service.v1 import credit_service_pb2 as pb

# So long that no grant that a refund opens again lapses during the test.
GRACE = timedelta(days=7)


# The book has no entry with the time of these requests, or not always.
_ALONE = {"revoke", "allowance"}
_PERIODS = {
    "day": pb.ALLOWANCE_PERIOD_DAY,
    "week": pb.ALLOWANCE_PERIOD_WEEK,
    "month": pb.ALLOWANCE_PERIOD_MONTH,
}


class Race:
    """Requests in waves, and the seqs of answered entries, which later waves may name.

    `unwritten` are the requests without an entry in the book, each with a seq and a time before it.
    """

    def __init__(self, database, user, clients):
        self.database = database
        self.user = user
        self.clients = clients
        self.asked = {}
        self.unwritten = []
        self.made = {"hold": [], "spent": [], "grant": [], "payment": []}

    async def wave(self, steps):
        requests, alone, reverses = [], [], True
        for step in steps:
            if step.call in _ALONE:
                alone.append(step)
                continue
            # One per wave, because the book does not have the order of two revisions that moved
            # nothing.
            if step.call == "reverse" and not reverses:
                continue
            reverses = reverses and step.call != "reverse"
            fields = self._named(step)
            if fields is not None:
                requests.append((step.call, fields, f"key {len(self.asked)}"))
                self.asked[requests[-1][2]] = step.call, fields
        answers = await asyncio.gather(
            *(
                self._ask(self.clients[place % len(self.clients)], *request)
                for place, request in enumerate(requests)
            )
        )
        for (call, fields, _), answer in zip(requests, answers, strict=True):
            self._remember(call, fields, answer)
        for step in alone:
            await self._do_alone(step)

    async def _do_alone(self, step):
        """Makes a request that may have no entry when no other one is under way."""
        fields = self._named(step)
        if fields is None:
            return
        key = f"key {len(self.asked)}"
        self.asked[key] = step.call, fields
        [[before]] = await self.database.fetch("SELECT clock_timestamp()")
        answer = await self._ask(self.clients[step.of % len(self.clients)], step.call, fields, key)
        if isinstance(answer, CreditError):
            assert isinstance(answer, Refusal), answer
        elif step.call == "allowance" or answer.replayed:
            self.unwritten.append((answer.credit.seq, before, step.call, fields))

    def _named(self, step):
        fields = {name: value for name, value in step.fields.items() if value is not None}
        named, kind = {
            "capture": ("hold", "hold"),
            "release": ("hold", "hold"),
            "refund": ("line", "spent"),
            "revoke": ("grant", "grant"),
            "reverse": ("payment", "payment"),
        }.get(step.call, (None, None))
        if named is None:
            return fields
        made = self.made[kind]
        return fields | {named: made[step.of % len(made)]} if made else None

    def _remember(self, call, fields, answer):
        if isinstance(answer, CreditError):
            assert isinstance(answer, Refusal), answer
            return
        if call == "purchase" and fields["payment"] not in self.made["payment"]:
            self.made["payment"].append(fields["payment"])
        if {"lasts", "priority"} & fields.keys() and any(answer.transaction.grant_changes):
            self.made["grant"].append(answer.transaction.seq)
        kind = pb.TransactionType.Name(answer.transaction.type).removeprefix("TRANSACTION_TYPE_")
        if kind == "HOLD":
            self.made["hold"].append(answer.transaction.seq)
        elif kind in {"SPEND", "CAPTURE"} and call != "refund":
            self.made["spent"].append(answer.transaction.seq)

    async def _ask(self, client, call, fields, key):
        user, keyed = self.user, {"idempotency_key": key}
        amount = {"amount": fields.get("amount")}
        life = {
            "valid_for": timedelta(seconds=fields["lasts"]) if "lasts" in fields else None,
            "priority": fields.get("priority"),
        }
        ref = f"{user} {fields.get('payment')}"
        hold = transaction_id(user, fields.get("hold", 0))
        rollover = fields.get("rollover")
        sending = {
            "purchase": lambda: client.purchase_credits(
                user,
                payment=pb.Payment(ref=ref, amount_minor=PAID_MINOR, currency="eur"),
                rollover=rollover and pb.Rollover(series=rollover[0], cap=rollover[1]),
                **amount,
                **life,
                **keyed,
            ),
            "grant": lambda: client.grant_credits(user, reason="test", **amount, **life, **keyed),
            "spend": lambda: client.spend_credits(user, **amount, **keyed),
            "hold": lambda: client.hold_credits(
                user, ttl=timedelta(seconds=fields["ttl"]), **amount, **keyed
            ),
            "capture": lambda: client.capture_hold(
                user, hold, allow_overage=fields["overage"], **amount, **keyed
            ),
            "release": lambda: client.release_hold(user, hold, **keyed),
            "refund": lambda: client.refund_credits(
                user, transaction_id=transaction_id(user, fields["line"]), **amount, **keyed
            ),
            "revoke": lambda: client.revoke_grant(
                user, transaction_id(user, fields["grant"]), reason="test", **keyed
            ),
            "adjust": lambda: client.adjust_credits(
                user, reason="test", allow_debt=fields["allow_debt"], **amount, **keyed
            ),
            "allowance": lambda: client.set_account_policy(
                user,
                allowance=pb.Allowance(
                    amount=fields["amount"], period=_PERIODS[fields["period"]], carry_over=0
                ),
            ),
            "reverse": lambda: client.reverse_purchase(
                ref,
                reversal_ref=f"{ref} {fields['reversal']}",
                revision=fields["revision"],
                reversed_minor=fields["minor"],
                paid_minor=PAID_MINOR,
                currency="eur",
                reason="test",
            ),
        }[call]
        try:
            return await sending()
        except CreditError as error:
            return error


class Retold:
    """Gives the book of a user to the model, request by request, and keeps the account's states."""

    def __init__(self, race, floor):
        self.asked = dict(race.asked)
        self.unwritten = list(race.unwritten)
        self.unmoved = []
        self.model = ModelGrants(floor=floor, grace=GRACE.total_seconds())
        # The model's seqs by the book's.
        self.seqs = {}
        # The times of the last request taken, and of the book's last entry.
        self.last = None
        self.written = 0.0
        self.moments = []

    def tell(self, rows, reversals):
        """Takes the rows in order; before each, book and model have the same balance."""
        moved = {reversal["seq"]: reversal for reversal in reversals}
        self.unmoved = [reversal for reversal in reversals if reversal["seq"] is None]
        for row in rows:
            self._take_unwritten(row["seq"])
            self.written = now = _seconds(row["timestamp"])
            if row["call"] in {"expiry", "lapse", "revocation"}:
                continue
            self._reverse_nothing_until(row["timestamp"])
            self._pass(now)
            if row["call"] == "allowance":
                self.model.look(now)
                self.seqs[row["seq"]] = len(self.model.lines)
                assert self.model.balance == row["balance_after"]
            else:
                self._take(row, now, moved)
            require_the_law(self.model)
        self._take_unwritten(float("inf"))
        self._reverse_nothing_until(datetime.max.replace(tzinfo=UTC))

    def _take(self, row, now, moved):
        self.model.look(now, posts_allowance=False)
        before = (
            row["balance_after"] - row["balance_change"],
            row["held_after"] - row["held_change"],
        )
        assert (self.model.balance, self.model.held) == before
        call, fields = self._request(row, moved)
        line = self.model.take(call, now, **fields)
        self.seqs[row["seq"]] = line.seq if line is not None else 0

    def _take_unwritten(self, seq):
        """Takes the requests without an entry that came before the entry of a seq."""
        while self.unwritten and self.unwritten[0][0] < seq:
            _, time, call, fields = self.unwritten.pop(0)
            self._reverse_nothing_until(time)
            if call == "revoke":
                fields = {"grant": self.seqs[fields["grant"]]}
            else:
                fields = {"carry_over": 0, **fields}
            now = max(self.written, self.last or 0.0)
            self._pass(now)
            # An allowance comes with the next request.
            self.model.look(now, posts_allowance=False)
            getattr(self.model, f"_{call}")(**fields)

    def _reverse_nothing_until(self, time):
        """Takes the revisions that moved nothing and were recorded by a time."""
        while self.unmoved and self.unmoved[0]["recorded_at"] <= time:
            reversal = self.unmoved.pop(0)
            now = _seconds(reversal["recorded_at"])
            self._pass(now)
            balance = self.model.balance
            self.model.take("reverse", now, **_revision(reversal))
            assert self.model.lines[-1].type != "reversal" or self.model.balance == balance

    def _pass(self, now):
        """Lets time pass since the last request, and notes the account's states between."""
        if self.last is not None:
            self._look_between(self.last, now)
        self.last = now

    def _look_between(self, since, until):
        """Notes the states between two requests: half way, and at each expiry and lapse."""
        model = self.model
        times = {(since + until) / 2}
        times |= {hold.until for hold in model.holds.values() if hold.state == "held"}
        times |= {grant.expire for grant in model.grants.values() if grant.remaining}
        for moment in sorted(time for time in times if since < time < until):
            then = copy.deepcopy(model)
            then.look(moment, posts_allowance=False)
            dated = {}
            for grant in then.grants.values():
                if grant.free and grant.expire != float("inf"):
                    dated[grant.expire] = dated.get(grant.expire, 0) + len(grant.free)
            expiring = [(SINCE + timedelta(seconds=at), dated[at]) for at in sorted(dated)[:3]]
            self.moments.append(
                (SINCE + timedelta(seconds=moment), then.balance, then.held, expiring)
            )

    def _request(self, row, reversals):
        if row["call"] == "ReversePurchase":
            return "reverse", _revision(reversals[row["seq"]])
        call, fields = self.asked.pop(row["idempotency_key"])
        fields = dict(fields)
        if "lasts" in fields:
            fields["expire"] = _seconds(row["timestamp"]) + fields.pop("lasts")
        for name in {"hold", "line", "grant"} & fields.keys():
            fields[name] = self.seqs[fields[name]]
        return call, fields


def _seconds(time):
    return (time - SINCE).total_seconds()


def _revision(row):
    """The request of a recorded revision."""
    _, payment, name = row["reversal_ref"].split(" ")
    return {
        "payment": payment,
        "reversal": name,
        "revision": row["revision"],
        "minor": row["reversed_minor"],
        "paid": PAID_MINOR,
    }


@pytest.fixture
async def kept(database):
    """The database by one connection, for all examples."""
    async with database.kept_open() as kept:
        yield kept


async def services_agree_with_the_model(database, floor, waves):
    user = await database.user()
    async with (
        running(_settings(database, floor)) as one,
        running(_settings(database, floor)) as other,
    ):
        race = Race(database, user, [await one.client(), await other.client()])
        for wave in waves:
            await race.wave(wave)
            # During such a wait some holds end and some credits lapse; the assertions hold for
            # any other wait too.
            await asyncio.sleep(0.4)
        retold = await _retold(database, race, floor)
        for moment, balance, held, expiring in retold.moments:
            credit = await race.clients[0].get_user_credit(user, as_of=moment)
            assert (credit.balance, credit.held) == (balance, held), moment
            shown = [
                (each.expire_time.ToDatetime(SINCE.tzinfo), each.amount) for each in credit.expiring
            ]
            assert shown == expiring, moment
    assert not await database.faults()
    said = []
    [[accounts]] = await database.fetch("SELECT count(*) FROM user_credits")
    assert await verify(database.connection, None, said.append, said.append) == (accounts, 0), said


def _settings(database, floor):
    terms = server_settings(database.service_url).writers.terms
    return server_settings(
        database.service_url,
        terms=type(terms)(terms.prices, floor, refund_grace=GRACE),
    )


async def _retold(database, race, floor):
    user = race.user
    connection = database.connection
    # The sweeper may go on meanwhile.
    async with connection.transaction(isolation="repeatable_read"):
        rows, reversals, kept = [
            await connection.fetch(f"SELECT * FROM {table} WHERE user_id = $1 ORDER BY {key}", user)
            for table, key in (
                ("credit_transactions", "seq"),
                ("credit_reversals", "recorded_at"),
                ("credit_grants", "seq"),
            )
        ]
    retold = Retold(race, floor)
    retold.tell(rows, reversals)
    model = retold.model
    if rows:
        model.look(_seconds(rows[-1]["timestamp"]), posts_allowance=False)
        assert (model.balance, model.held) == (rows[-1]["balance_after"], rows[-1]["held_after"])
    got = [
        (row["amount"], row["remaining"], row["pinned"], row["lapsed"], row["revoked"])
        for row in kept
    ]
    assert got == [
        (grant.amount, grant.remaining, len(grant.pinned), grant.lapsed, grant.revoked)
        for grant in model.grants.values()
    ]
    return retold


_WAVES = st.lists(st.lists(races(), min_size=4, max_size=12), min_size=3, max_size=5)
_FLOORS = st.sampled_from([0, -5])
# A failure of a race may not come back while it is shrunk, so it is shown as it was found.
_RACES = settings(
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.long
@settings(_RACES, derandomize=True, max_examples=extent(4, 8))
@given(floor=_FLOORS, waves=_WAVES)
async def test_two_services_keep_grants_as_the_model_does(kept, floor, waves):
    await services_agree_with_the_model(kept, floor, waves)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_RACES, max_examples=extent(6, 40))
@given(floor=_FLOORS, waves=_WAVES)
async def test_two_services_keep_grants_as_the_model_does_in_a_storm(kept, floor, waves):
    await services_agree_with_the_model(kept, floor, waves)
