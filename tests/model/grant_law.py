"""The law of an account with grants, which the model itself must always keep."""


def require_the_law(account):
    """Fails if the model breaks the law."""
    assert all(
        credit.place in account._open() for g in account.grants.values() for credit in g.pinned
    )
    assert account.pinned == sum(len(grant.pinned) for grant in account.grants.values())
    assert 0 <= account.pinned <= account.held
    assert account.pool >= 0 or not any(grant.free for grant in account.grants.values())
    assert account.balance == sum(line.balance_change for line in account.lines)
    assert account.held == sum(line.held_change for line in account.lines)
    for purchase in account.purchases.values():
        moved = len(purchase.own) + len(purchase.elsewhere)
        assert moved + purchase.counted == purchase.reversed_credits
        assert not purchase.elsewhere or purchase.grant is None or not purchase.grant.remaining
