"""docs/schema.sql is the schema that the migrations make, as SQL that makes it again."""

import re

import schema
from kit.paths import ROOT

DESIGN = ROOT / "docs" / "design.md"


async def test_the_file_shows_the_schema_after_all_migrations(database):
    connection = await database.connect()
    try:
        described = await schema.described(connection)
    finally:
        await connection.close()
    assert schema.FILE.read_text() == described, "run scripts/schema and commit docs/schema.sql"


async def test_the_file_makes_the_same_schema_in_an_empty_database(make_database):
    database = await make_database(empty=True)
    connection = await database.connect()
    try:
        await connection.execute(schema.FILE.read_text())
        assert await schema.described(connection) == schema.FILE.read_text()
    finally:
        await connection.close()


def section(title):
    """The text of a section of docs/design.md."""
    return DESIGN.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_design_describes_every_table():
    tables = set(re.findall(r"CREATE TABLE (credit_\w+|user_credits)", schema.FILE.read_text()))
    assert tables - set(re.findall(r"`(\w+)`", section("The tables"))) == set()


def test_the_design_names_every_room():
    rooms = {
        f"credit_service/{path.parent.name}/" for path in ROOT.glob("credit_service/*/__init__.py")
    }
    assert rooms - {"credit_service/v1/"} == set(
        re.findall(r"\| `(credit_service/\w+/)`", section("The rooms"))
    )
