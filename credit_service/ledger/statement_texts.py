"""The texts of the ledger's statements."""

from __future__ import annotations

from importlib import resources

SQL = {
    file.name.removesuffix(".sql"): file.read_text()
    for file in (resources.files(__package__) / "sql").iterdir()
    if file.name.endswith(".sql")
}
