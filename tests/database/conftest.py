"""Places for embedded servers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that the user `nobody` can reach; pytest's own are closed."""
    place = Path(tempfile.mkdtemp(prefix="embedded-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def data(place: Path) -> Path:
    return place / "data"
