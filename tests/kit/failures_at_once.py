"""Prints a failure when it happens: a parallel run that is cut off never prints its report."""


class FailuresAtOnce:
    """A plugin of the process that the other test processes report to."""

    def __init__(self, config):
        self._config = config

    def pytest_runtest_logreport(self, report):
        if report.failed:
            terminal = self._config.get_terminal_writer()
            terminal.line()
            terminal.sep("!", f"{report.nodeid} failed ({report.when})")
            terminal.line(report.longreprtext)
