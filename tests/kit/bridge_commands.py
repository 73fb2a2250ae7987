"""The bridge's command line as a separate program."""

import asyncio
import os

from kit.programs import run_module


async def ran(*arguments, **settings):
    """Runs a command with these settings and no others; it may refuse, but must not crash."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE_BRIDGE_")}
    given = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    done = await asyncio.to_thread(
        run_module, "stripe_bridge", *arguments, environment={**clean, **given}
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    return done
