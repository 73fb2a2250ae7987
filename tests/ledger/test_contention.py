"""Which users are contended, and until when."""

from uuid import UUID

from credit_service.ledger.contention import Contention

ALICE, BOB = UUID(int=1), UUID(int=2)


def test_at_first_no_user_is_contended():
    contention = Contention()
    assert not contention
    assert not contention.includes(ALICE, 0.0)


def test_a_user_is_contended_until_the_time_has_passed():
    contention = Contention(10.0)
    contention.mark([ALICE], 100.0)
    assert contention
    assert contention.includes(ALICE, 100.0)
    assert contention.includes(ALICE, 109.9)
    assert not contention.includes(ALICE, 110.0)
    assert not contention.includes(BOB, 100.0)


def test_a_user_found_locked_again_is_contended_for_longer():
    contention = Contention(10.0)
    contention.mark([ALICE, BOB], 100.0)
    contention.mark([ALICE], 105.0)
    assert contention.includes(ALICE, 114.9)
    assert not contention.includes(BOB, 110.0)


def test_forgetting_drops_users_whose_time_has_passed_and_no_others():
    contention = Contention(10.0)
    contention.mark([ALICE], 100.0)
    contention.mark([BOB], 105.0)
    contention.forget(110.0)
    assert not contention.includes(ALICE, 105.0)
    assert contention.includes(BOB, 114.9)
    contention.forget(115.0)
    assert not contention


def test_with_zero_seconds_no_user_is_contended():
    contention = Contention(0.0)
    contention.mark([ALICE], 100.0)
    assert not contention.includes(ALICE, 100.0)
