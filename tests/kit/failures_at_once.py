"""Prints a failure when it happens, and at the end the tests that were still running.

A parallel run that is cut off never prints its report, and one that is interrupted does not say
where it was.
"""


class FailuresAtOnce:
    """A plugin of the process that the other test processes report to."""

    def __init__(self, config):
        self._config = config
        self._running = set()

    def pytest_runtest_logstart(self, nodeid):
        self._running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid):
        self._running.discard(nodeid)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            terminal = self._config.get_terminal_writer()
            terminal.line()
            terminal.sep("!", f"{report.nodeid} failed ({report.when})")
            terminal.line(report.longreprtext)

    def pytest_terminal_summary(self, terminalreporter):
        for nodeid in sorted(self._running):
            terminalreporter.write_line(f"still running: {nodeid}")
