"""The 50 ways in which a Stripe bridge fails, each shown by a test that bears its number."""

import re
from pathlib import Path

_TESTS = Path(__file__).parent


def test_every_failure_mode_has_a_test_that_bears_its_number():
    written = "".join(path.read_text() for path in _TESTS.glob("test_*.py"))
    numbers = set(map(int, re.findall(r"^(?:async )?def test_(\d\d)_", written, re.MULTILINE)))
    assert numbers == set(range(1, 51))
