"""Writes docs/schema.sql: the schema as it is after all migrations, for people to read.

It reads the catalogue of a database that was migrated just now. pg_dump would spread a table over
its output, with the constraints far away from their columns.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import textwrap
from pathlib import Path

import asyncpg

from credit_service.database import migrations
from credit_service.database.embedded import embedded_postgres

FILE = Path(__file__).parents[1] / "docs" / "schema.sql"

SERVICE_ROLE = "credit_service"

_WIDTH = 100

# The places where a long definition may be broken, and the words before which every one is.
_PARTS = re.compile(r" (?=(?:AND|OR|IN|CHECK|REFERENCES|WHERE|BEFORE|FOR EACH)\b)")
_ALWAYS_APART = ("BEFORE", "FOR EACH")

_HEAD = f"""\
-- The schema as it is after all migrations. Written by scripts/schema; do not edit it.
--
-- Each table is followed by its indexes and triggers, and by the rights of the service's role,
-- {SERVICE_ROLE}. The owner of the tables, who migrates, is another role. The time limits of the
-- service's role are in docs/deploy.md.
"""

# A released migration is never edited, so these comments replace the ones in the migrations. An
# object without one here keeps its comment in the migration.
_COMMENTS = {
    "auth.users": """\
Who is a user. The first migration makes this table unless there is one, as on Supabase.""",
    "user_credits": """\
The accounts: one row per user, which is the running total and the lock of everything that
happens to the user. There is no further index and room on each page, so that an update stays on its
page (heap-only tuples).

next_hold_expiry is at or before the earliest expiry of the open holds, so that a batch need not
look for expired holds. The counters spent_this_... belong to the minute, hour and day in UTC that
counted_at lies in.

in_grants is what is left of all grants of the account, and pinned is the part of it that holds have
set aside; balance - in_grants is the pool. grants_made counts all grants there ever were, so that
nothing need be looked up where there was none. next_lapse is at or before the earliest expire_time
of the open grants. No allowance is due before allowance_until. An allowance_amount of 0 is none;
null is as configured.""",
    "credit_transactions": """\
The entries, append-only. An entry is also the memory of its idempotency key. seq is assigned
under the lock of the account.

The foreign key refers to the account and not to auth.users, because otherwise the deletion of a
user and a batch that writes for this user would wait for each other.""",
    "credit_refunds": """\
How much of a spend or capture was refunded; written with its first refund.""",
    "credit_purchases": """\
Which payment was credited to whom. It has no foreign key and outlives a deleted user, so that a
payment is never credited twice.""",
    "credit_holds": """\
The holds in their present state. The entry at seq made the hold, the one at settled_seq ended
it, and the one at captured_seq captured it, in time or late.""",
    "credit_policy_changes": """\
Who changed what an account may do, and when. Append-only.""",
    "credit_reversals": """\
Every revision of every refund and dispute; the highest revision of each counts. Append-only. It
has no foreign key and outlives a deleted user.

opens_ref is the reversal_ref on the row that was first recorded under it, and null on the others.
It is unique, so that two payments cannot share a refund or dispute.

counted says how many of the credits that a revision took had lapsed or been revoked before, so that
they did not move. What a later revision gives back of them is below zero.""",
    "credit_kept_keys": """\
The idempotency keys of calls that were answered with the entry of another call: the release of a
hold that had ended, or a purchase whose payment had been credited. Every other key is in its entry.
Append-only.""",
    "credit_migrations": """\
Which migrations were applied.""",
    "credit_users": """\
Which of these ids are users. It runs with the rights of its owner, because on Supabase the
service's role cannot be given any in the schema auth, and row-level security hides the users. It
is not a view, because a role with rights on a view by mistake could delete users through it.""",
    "refuse_to_change_the_book": """\
Deleting a user in auth.users reaches accounts and entries through foreign keys, and so from
within another trigger. Nothing else may change or delete them, not even the owner.""",
}

_TABLES = """
    SELECT oid, oid::regclass::text AS name, array_to_string(reloptions, ', ') AS options
    FROM pg_class
    WHERE
        relkind = 'r'
        AND relnamespace IN (
            SELECT oid FROM pg_namespace
            WHERE nspname IN ('auth', current_schema())
        )
    ORDER BY relname = 'credit_migrations', relnamespace <> 'auth'::regnamespace, oid
"""

_COLUMNS = """
    SELECT
        attname AS name,
        format_type(atttypid, atttypmod) AS type,
        attnotnull AS required,
        attgenerated <> '' AS generated,
        pg_get_expr(adbin, adrelid, true) AS value
    FROM pg_attribute
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
"""

# From PostgreSQL 18 on, a column that is not null has a constraint of its own.
_CONSTRAINTS = """
    SELECT conname AS name, pg_get_constraintdef(oid, true) AS definition
    FROM pg_constraint
    WHERE conrelid = $1 AND contype <> 'n'
    ORDER BY array_position('{p,u,f,c}'::"char"[], contype), oid
"""

_INDEXES = """
    SELECT pg_get_indexdef(indexrelid, 0, true) AS definition
    FROM pg_index
    WHERE
        indrelid = $1
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    ORDER BY indexrelid
"""

_TRIGGERS = """
    SELECT pg_get_triggerdef(oid, true) AS definition
    FROM pg_trigger
    WHERE tgrelid = $1 AND NOT tgisinternal
    ORDER BY oid
"""

_RIGHTS = """
    SELECT string_agg(privilege_type, ', ' ORDER BY privilege_type) AS rights
    FROM pg_class, aclexplode(relacl) AS granted
    WHERE pg_class.oid = $1 AND granted.grantee = $2::regrole
    HAVING count(*) > 0
    UNION ALL
    SELECT privilege_type || ' (' || string_agg(attname, ', ' ORDER BY attnum) || ')'
    FROM pg_attribute, aclexplode(attacl) AS granted
    WHERE attrelid = $1 AND granted.grantee = $2::regrole
    GROUP BY privilege_type
"""

_FUNCTIONS = """
    SELECT
        oid::regprocedure::text AS name,
        pg_get_functiondef(oid) AS definition,
        prorettype = 'trigger'::regtype AS for_triggers,
        has_function_privilege($1, oid, 'EXECUTE') AND proacl IS NOT NULL AS granted
    FROM pg_proc
    WHERE pronamespace = current_schema()::regnamespace
    ORDER BY oid
"""


async def described(connection: asyncpg.Connection) -> str:
    """Describes the schema of a database as SQL that makes the same schema in an empty one.

    Args:
        connection: as the owner of the tables, after all migrations.
    """
    parts = [_HEAD, f"CREATE SCHEMA auth;\nGRANT USAGE ON SCHEMA auth TO {SERVICE_ROLE};\n"]
    functions = await connection.fetch(_FUNCTIONS, SERVICE_ROLE)
    parts += [_function(row) for row in functions if row["for_triggers"]]
    for table in await connection.fetch(_TABLES):
        parts.append(await _table(connection, table))
    parts += [_function(row) for row in functions if not row["for_triggers"]]
    return "\n".join(parts)


def _function(row: asyncpg.Record) -> str:
    head, body, _ = re.split(r"\$\w*\$", row["definition"])
    head = re.sub(r"CREATE OR REPLACE FUNCTION \w+\.", "CREATE FUNCTION ", head)
    head = "\n".join(line.strip() for line in head.splitlines())
    text = _comment("FUNCTION", row["name"].partition("(")[0])
    text += f"{head} $${body}$$;\n"
    if row["granted"]:
        text += f"\nREVOKE ALL ON FUNCTION {row['name']} FROM PUBLIC;\n"
        text += f"GRANT EXECUTE ON FUNCTION {row['name']} TO {SERVICE_ROLE};\n"
    return text


async def _table(connection: asyncpg.Connection, table: asyncpg.Record) -> str:
    oid, name = table["oid"], table["name"]
    lines = [_column(row) for row in await connection.fetch(_COLUMNS, oid)]
    lines += [
        f"CONSTRAINT {row['name']} {_plain(row['definition'])}"
        for row in await connection.fetch(_CONSTRAINTS, oid)
    ]
    options = f" WITH ({table['options']})" if table["options"] else ""
    text = f"{_comment('TABLE', name)}CREATE TABLE {name} (\n"
    text += ",\n".join(_folded(line, "    ").removesuffix("\n") for line in lines)
    text += f"\n){options};\n"
    for query in (_INDEXES, _TRIGGERS):
        rows = await connection.fetch(query, oid)
        text += "\n" if rows else ""
        text += "".join(_folded(f"{_plain(row['definition'])};", "") for row in rows)
    rights = await connection.fetch(_RIGHTS, oid, SERVICE_ROLE)
    text += "\n" if rights else ""
    text += "".join(f"GRANT {row['rights']} ON {name} TO {SERVICE_ROLE};\n" for row in rights)
    return text


def _column(row: asyncpg.Record) -> str:
    text = f"{row['name']} {_plain(row['type'])}"
    if row["required"]:
        text += " NOT NULL"
    if row["value"] is not None:
        value = _plain(row["value"])
        text += (
            f" GENERATED ALWAYS AS ({value}) STORED" if row["generated"] else f" DEFAULT {value}"
        )
    return text


def _plain(definition: str) -> str:
    """Removes what PostgreSQL adds and a reader does not need: casts, schemas, parentheses."""
    for pattern, shorter in (
        (r"('(?:[^']|'')*')::text\b", r"\1"),
        (r"'(-?\d+)'::bigint\b", r"\1"),
        (r"\btimestamp with time zone\b", "timestamptz"),
        (r"= ANY \(ARRAY\[([^][]*)\]\)", r"IN (\1)"),
        (r"<> ALL \(ARRAY\[([^][]*)\]\)", r"NOT IN (\1)"),
        (r"\(- (\w+)\)", r"-\1"),
        (r"\b(ON|EXECUTE FUNCTION) public\.", r"\1 "),
        (r" USING btree ", " "),
        (r"^CHECK \(\s*", "CHECK ("),
    ):
        definition = re.sub(pattern, shorter, definition)
    return definition


def _folded(text: str, indent: str) -> str:
    """Indents a definition, and breaks its long lines before a word that begins a part of it."""
    folded: list[str] = []
    for line in text.splitlines():
        within = indent + line[: len(line) - len(line.lstrip())]
        first, *parts = _PARTS.split(line.strip())
        lines = [within + first]
        for part in parts:
            if len(f"{lines[-1]} {part},") > _WIDTH or part.startswith(_ALWAYS_APART):
                lines.append(f"{within}    {part}")
            else:
                lines[-1] += f" {part}"
        folded += lines
    return "\n".join(folded) + "\n"


def _comment(kind: str, name: str) -> str:
    text = _COMMENTS.get(name)
    if text is not None:
        paragraphs = (textwrap.wrap(part, _WIDTH - len("-- ")) for part in text.split("\n\n"))
        return "--\n".join("".join(f"-- {line}\n" for line in lines) for lines in paragraphs)
    made = rf"((?:^-- .*\n|^--\n)+)CREATE {kind} (?:IF NOT EXISTS )?{re.escape(name)}\b"
    found = [
        comment
        for migration in migrations.migrations()
        for comment in re.findall(made, migration.sql, re.MULTILINE)
    ]
    return found[-1] if found else ""


def main() -> None:
    """Migrates a new database and writes the file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="credit-schema-") as directory:
        Path(directory).chmod(0o755)
        with embedded_postgres(Path(directory) / "data", {"fsync": "off"}) as cluster:
            FILE.write_text(asyncio.run(_migrated(cluster.owner_url)))
    print(f"written: {FILE}")


async def _migrated(owner_url: str) -> str:
    await migrations.migrate(owner_url, SERVICE_ROLE, lambda _: None)
    connection = await asyncpg.connect(owner_url)
    try:
        return await described(connection)
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
