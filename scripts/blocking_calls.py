"""Writes BlockingCreditClient's calls from CreditClient's: the same names, types and words.

scripts/blocking_calls.py            writes what has changed
scripts/blocking_calls.py --check    changes nothing; ends with 1 if a file is not up to date
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "credit_service" / "client"
RUFF = Path(sys.executable).with_name("ruff")

Method = ast.FunctionDef | ast.AsyncFunctionDef


def generated() -> dict[Path, str]:
    """Returns the text of each module of blocking calls."""
    return {
        CLIENT / f"blocking_{noun}.py": _formatted(_module(CLIENT / f"{noun}.py"))
        for noun in ("credits", "grants", "accounts", "holds", "feed", "top_ups")
    }


def _module(path: Path) -> str:
    source = path.read_text()
    tree = ast.parse(source)
    (calls,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    methods = [node for node in calls.body if isinstance(node, Method)]
    at_run_time = {name for method in methods for name in _names(_defaults(method))}
    in_types = {name for method in methods for name in _names(_annotations(method))}
    imports = dict(_imports(tree))
    needed = sorted(imports[name] for name in at_run_time & imports.keys())
    for_types = sorted({imports[name] for name in (in_types - at_run_time) & imports.keys()})
    lines = [
        f'"""The calls of {path.name}, blocking; written by scripts/blocking_calls.py."""',
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING",
        "from credit_service.client.blocking_connection import BlockingConnection",
        *needed,
        "if TYPE_CHECKING:",
        *(f"    {line}" for line in for_types),
        f"class Blocking{calls.name}(BlockingConnection):",
        f'    """{ast.get_docstring(calls)}"""',
        *(_blocking(source, method) for method in methods),
    ]
    return re.sub(r"\bAsyncGenerator\b", "Generator", "\n".join(lines) + "\n")


def _blocking(source: str, method: Method) -> str:
    """Renders a method: its signature and docstring as they are, its body as a call that waits."""
    docstring = method.body[0]
    head = "\n".join(source.splitlines()[method.lineno - 1 : docstring.end_lineno])
    head = head.replace("async def", "def", 1)
    arguments = [argument.arg for argument in method.args.args[1:]]
    arguments += [f"{argument.arg}={argument.arg}" for argument in method.args.kwonlyargs]
    yields = "AsyncGenerator" in set(_names([method.returns]))
    wait = "iterate" if yields else "run"
    body = f"return self.{wait}(self._client.{method.name}({', '.join(arguments)}))"
    return f"{head}\n        {body}\n"


def _defaults(method: Method) -> list[ast.expr | None]:
    return [*method.args.defaults, *method.args.kw_defaults]


def _annotations(method: Method) -> list[ast.expr | None]:
    arguments = (*method.args.args, *method.args.kwonlyargs)
    return [method.returns, *(argument.annotation for argument in arguments)]


def _names(expressions: list[ast.expr | None]) -> Iterator[str]:
    for expression in expressions:
        for node in ast.walk(expression) if expression is not None else ():
            if isinstance(node, ast.Name):
                yield node.id


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                statement = ast.ImportFrom(node.module, [alias], node.level)
                yield alias.asname or alias.name, ast.unparse(statement)


def _formatted(text: str) -> str:
    for command in (("check", "--fix-only", "--select=I,F401"), ("format",)):
        name = "--stdin-filename=credit_service/client/blocking_calls.py"
        ruff = (RUFF, *command, "--quiet", name, "-")
        ended = subprocess.run(  # noqa: S603  # our own formatter
            ruff, input=text, capture_output=True, text=True, check=True
        )
        text = ended.stdout
    return text


def main() -> int:
    """Writes the files, or with --check compares them."""
    stale = [path for path, text in generated().items() if not _is(path, text)]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is not what scripts/blocking_calls.py writes; run it")
        return 1 if stale else 0
    for path, text in generated().items():
        if path in stale:
            path.write_text(text)
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
