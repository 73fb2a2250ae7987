"""A run of the tests that does not end by itself, for the test that kills a run."""

import os
import signal
from pathlib import Path

from kit.leftovers import MARK
from kit.programs import process


def test_it_serves_until_it_is_killed(database):
    with process("serve", CREDIT_DATABASE_URL=database.service_url) as server:
        server.wait_until_listening()
        Path(os.environ["STANDSTILL"]).write_text(os.environ[MARK])
        signal.pause()
