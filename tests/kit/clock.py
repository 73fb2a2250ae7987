"""The database's clock, as an account sees it, moved on or set back.

A test cannot move the clock of a cluster that others use. Moving all that is recorded about a user
by the same length is the same for everything the service does with that user.
"""

from uuid import UUID

from kit.databases import Database

_TIMES = {
    "user_credits": (
        *("last_updated", "next_hold_expiry", "counted_at", "next_lapse"),
        "allowance_until",
    ),
    "credit_transactions": ("timestamp",),
    "credit_holds": ("created_at", "expires_at"),
    "credit_grants": ("expire_time", "asked_time"),
    "credit_grant_changes": ("expire_after", "lapsed_at"),
    "credit_policy_changes": ("changed_at",),
    "credit_reversals": ("recorded_at",),
    "credit_purchases": ("purchased_at",),
    "credit_allowances": ("until",),
}


# One statement for all the tables.
_MOVE = (
    "WITH "
    + ", ".join(
        f"moved_{table} AS (UPDATE {table} SET "
        + ", ".join(f"{column} = {column} - $2 * interval '1 second'" for column in columns)
        + " WHERE user_id = $1)"
        for table, columns in _TIMES.items()
    )
    + " SELECT"
)


async def move_clock(database: Database, user_id: UUID, seconds: float) -> None:
    """Lets `seconds` pass for a user at once; below 0 the clock is set back."""
    async with database.kept_open() as kept:
        connection = kept.connection
        async with connection.transaction():
            # Entries never change, so their triggers are off for once.
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(_MOVE, user_id, float(seconds))
