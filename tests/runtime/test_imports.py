"""What the service loads when it starts."""

import subprocess
import sys


def test_the_service_starts_without_what_few_need():
    show = "import sys, credit_service.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "structlog" in loaded
    assert "rich" not in loaded
    assert "aiohttp" not in loaded  # for webhooks
