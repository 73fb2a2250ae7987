"""docs/schema.sql is the schema that the migrations make, as SQL that makes it again."""

import schema


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
