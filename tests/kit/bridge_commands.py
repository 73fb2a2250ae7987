"""The bridge's command line as a program of its own."""

import asyncio
import os
import subprocess
import sys

from kit.waiting import patience


async def ran(*arguments, **settings):
    """Runs a command with these settings and no others; it may refuse, but never fail."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE_BRIDGE_")}
    given = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "stripe_bridge", *arguments],
        env={**clean, **given},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    return done
