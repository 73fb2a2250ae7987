"""A service, a fake Stripe, and bridges whose rounds a test starts.

The tests of a module share them, and each makes its own users.
"""

from datetime import timedelta

import pytest
from kit.top_up_stage import top_up_stage


@pytest.fixture(scope="module")
async def shared_stage(make_shared_database):
    async with top_up_stage(await make_shared_database()) as opened:
        yield opened


@pytest.fixture
async def stage(shared_stage):
    """The whole stage; after the test, Stripe is calm again."""
    yield shared_stage
    await shared_stage.fake.api_faults()
    await shared_stage.fake.settings(clock_offset_seconds=0, search_lag_seconds=0)


@pytest.fixture
async def bridge(stage):
    """A bridge that retries an hour after a failure."""
    async with stage.bridge() as made:
        yield made


@pytest.fixture
async def eager(stage):
    """A bridge that retries at once after a failure."""
    async with stage.bridge(retry_after=timedelta(0)) as made:
        yield made
