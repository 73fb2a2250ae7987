"""Bodies of Stripe events as several API versions shape them, written for the tests.

One folder per API version, one file per event, named by its type and its peculiarity.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
USER = "3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b"
STUDIO, STORAGE = "price_1LaOMQx2K4vJ8tB7cStudio001", "price_1LaOMQx2K4vJ8tB7cStorage01"


def names():
    """Lists every body as `version/event`."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.json"))


def event(name):
    """Reads one event."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def thing(name, **changes):
    """Reads the object an event is about, with changes."""
    return event(name)["data"]["object"] | changes
