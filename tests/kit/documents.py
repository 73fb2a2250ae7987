"""The documents, for tests: their sections, tables and snippets, and a shell for the snippets."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from kit.paths import ROOT
from kit.waiting import patience

README = ROOT / "README.md"
DEPLOY = ROOT / "docs" / "deploy.md"
DESIGN = ROOT / "docs" / "design.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
DECISIONS = ROOT / "docs" / "decisions" / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "scripts" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)


def prose(document: Path) -> str:
    """The text without its fenced snippets."""
    return _FENCED.sub("", document.read_text())


def headings(document: Path) -> list[str]:
    return _HEADING.findall(prose(document))


def section(document: Path, heading: str) -> str:
    """The text below a heading of the second level, up to the next such heading."""
    text = document.read_text()
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    return text[start:end] if end != -1 else text[start:]


def snippets(document: Path, heading: str | None, *languages: str) -> list[str]:
    """The fenced snippets in these languages, in order; of one section, or of all."""
    text = document.read_text() if heading is None else section(document, heading)
    found = _FENCED.findall(text)
    return [text for language, text in found if language in languages]


def tables(document: Path) -> list[list[list[str]]]:
    """The tables of a document, as cells of rows; the first row is the head."""
    found = re.findall(r"(?:^\|.*\n)+", prose(document), re.MULTILINE)
    return [
        [
            [cell.strip() for cell in row.strip("|").split("|")]
            for row in text.splitlines()
            if not row.startswith("|---")
        ]
        for text in found
    ]


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of the service, with the tools on its PATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    tools = [Path(sys.executable).parent, os.environ["PATH"], Path.home() / "go" / "bin"]
    path = os.pathsep.join(map(str, [*tools, "/usr/local/sbin", "/usr/sbin"]))
    return kept | {"PATH": path}


@dataclass
class Shell:
    """Runs shell snippets one after the other in a directory; their exports stay in effect.

    Attributes:
        directory: where they run.
        swaps: replacements for parts of the printed text: ports, and the database's host.
    """

    directory: Path
    swaps: dict[str, str]
    environment: dict[str, str] = field(default_factory=plain_environment)

    def swapped(self, text: str) -> str:
        for printed, real in self.swaps.items():
            text = text.replace(printed, real)
        return text

    def run(self, snippet: str, seconds: float = 100) -> str:
        """Runs a snippet and returns its output; a failure shows the output."""
        exported = self.directory / "exported"
        script = f"set -eu\n{self.swapped(snippet)}\nenv -0 > exported\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=patience(seconds),
            check=False,
        )
        assert done.returncode == 0, f"{snippet}\nsaid:\n{done.stdout}"
        pairs = exported.read_text().split("\0")[:-1]
        self.environment = dict(pair.split("=", 1) for pair in pairs)
        exported.unlink()
        return done.stdout

    def python(self, snippet: str) -> str:
        """Runs a snippet of Python in a process of its own."""
        (self.directory / "snippet.py").write_text(self.swapped(snippet))
        return self.run(f"{sys.executable} snippet.py")

    @property
    def settings(self) -> dict[str, str]:
        return {k: v for k, v in self.environment.items() if k.startswith("CREDIT_")}
