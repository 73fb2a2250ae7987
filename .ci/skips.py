"""Prints which tests were skipped and why, and fails if a reason is not a permitted one.

usage: skips.py PERMITTED REPORT...

PERMITTED holds regular expressions, one a line; a REPORT is what `pytest --junitxml` writes.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET


def skipped(report: Path) -> Counter[str]:
    """Returns the reasons of a report, and how many tests were skipped for each."""
    tree = ET.parse(report)  # noqa: S314  # pytest wrote it
    return Counter(test.get("message", "") for test in tree.iter("skipped"))


def main(permitted: Path, *reports: Path) -> int:
    """Prints the reasons and returns the exit code."""
    lines = permitted.read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    reasons = sum((skipped(report) for report in reports), Counter[str]())
    refused = 0
    for reason, count in sorted(reasons.items()):
        allowed = any(re.fullmatch(pattern, reason) for pattern in patterns)
        refused += not allowed
        print(f"skipped {'' if allowed else 'AND NOT PERMITTED '}{count} times: {reason}")
    if not reports:
        print("No test wrote a report.")
    elif not reasons:
        print("No test was skipped.")
    return 1 if refused or not reports else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
