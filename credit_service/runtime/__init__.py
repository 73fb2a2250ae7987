"""What the programs share: settings, logs, metrics, stop signals, errors at the start, HTTP."""

import sys

# structlog imports rich if it can, for tracebacks in colour that the logs never have. That would
# take a fifth of the time in which a program starts.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
