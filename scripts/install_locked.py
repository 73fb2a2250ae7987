"""Installs the packages of a lock file, and nothing else, into a virtual environment.

    PYTHON scripts/install_locked.py LOCK [--python OTHER] [--project PATH [--editable]]

PYTHON has pip and belongs to a virtual environment. Packages go there, or to the environment of
OTHER. If LOCK names uv, pip brings uv first, pinned by hash, and uv installs the rest; uv uses the
index, certificates, proxy and folders of wheels that pip is set to use. If uv cannot be installed,
or fails, pip installs from the same lock.

Neither resolves the dependencies of a package, and neither builds a package from source. So a
package published later cannot change or break the installation, regardless of the version of pip.

Only the standard library is imported, because this runs before anything is installed.
"""

import argparse
import ast
import os
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Variables that would change versions or places; only the lock file may decide these.
_UV_IGNORES = (
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_NO_VERIFY_HASHES",
    "UV_OVERRIDE",
    "UV_PYTHON",
)
_PIP_IGNORES = ("PIP_PREFIX", "PIP_ROOT", "PIP_TARGET")


# The long lists at the end, and the lines about each single package.
_NOISE = re.compile(
    r" [-+~] |  (Using|Downloading|Preparing|Obtaining)|Looking in|Requirement already|Installing c"
    r"|Successfully"
)


class InstallError(Exception):
    """The installation failed; the message says why and what to do."""


def pip_settings() -> dict[str, str]:
    """Returns the settings that `pip install` uses, by the names that its files give them.

    The environment wins over the section `install`, and that over `global`; an empty value counts
    as none.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.stdout.splitlines():
            where, _, value = line.partition("=")
            if where.startswith(f"{section}.") and (text := str(ast.literal_eval(value))):
                settings[where.removeprefix(f"{section}.")] = text
    return settings


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment in which uv finds packages where pip finds them.

    Args:
        settings: pip's settings.
        environment: the environment of this process. A variable of uv's own wins over pip's
            setting; certificates and proxy are not variables of uv's own.
    """
    wanted = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "UV_INDEX": " ".join(settings.get("extra-index-url", "").split()),
        # Looks for a version in all indexes, as pip does. The hash says which file is right.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": ",".join(filter(_exists, settings.get("find-links", "").split())),
        "UV_INSECURE_HOST": " ".join(settings.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": settings.get("timeout", settings.get("default-timeout")),
        "UV_HTTP_RETRIES": settings.get("retries"),
        "UV_NO_CACHE": "1" if _is_set(settings.get("no-cache-dir")) else None,
        "UV_KEYRING_PROVIDER": (
            "subprocess" if settings.get("keyring-provider") == "subprocess" else None
        ),
    }
    result = {name: value for name, value in environment.items() if name not in _UV_IGNORES}
    result = {name: value for name, value in wanted.items() if value} | result
    result |= _certificates(settings, environment)
    if proxy := settings.get("proxy"):
        for name in ("http_proxy", "https_proxy"):
            result[name] = result[name.upper()] = proxy
    return result


def _exists(place: str) -> bool:
    """Returns whether pip would look there; pip ignores a missing folder."""
    return "://" in place or Path(place).expanduser().exists()


def _is_set(text: str | None) -> bool:
    return text is not None and text.lower() in {"1", "true", "yes", "on", "y", "t"}


def _certificates(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    result = {}
    if client := settings.get("client-cert"):
        result["SSL_CLIENT_CERT"] = client
    if authority := settings.get("cert"):
        result[_certificate_variable(authority)] = authority
    elif "SSL_CERT_FILE" not in environment and "SSL_CERT_DIR" not in environment:
        # pip reads these two as well; without them, recent versions trust what the system trusts.
        bundle = environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
        system = ssl.get_default_verify_paths()
        if bundle:
            result[_certificate_variable(bundle)] = bundle
        elif "UV_SYSTEM_CERTS" not in environment and (system.cafile or system.capath):
            result["UV_SYSTEM_CERTS"] = "1"
    return result


def _certificate_variable(place: str) -> str:
    return "SSL_CERT_DIR" if Path(place).is_dir() else "SSL_CERT_FILE"


def _pip_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _PIP_IGNORES}
    return kept | {"PIP_USER": "0", "PIP_CONSTRAINT": os.devnull}


def split_lock(text: str) -> tuple[str, str]:
    """Returns the part of a lock file that pins uv, which may be empty, and the rest."""
    parts = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    is_uv = re.compile(r"uv==").match
    return "".join(filter(is_uv, parts)), "".join(part for part in parts if not is_uv(part))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(command: Sequence[str | Path], environment: Mapping[str, str]) -> bool:
    """Runs a command, prints its output line by line, and returns whether it succeeded."""
    with subprocess.Popen(  # noqa: S603
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as running:
        for line in running.stdout or ():
            if line.strip() and not _NOISE.match(line):
                _say(f"  {line.rstrip()}")
    return running.returncode == 0


class Installer:
    """Installs into one environment, by uv if it is there and by pip otherwise."""

    def __init__(self, target: Path, *, cache: bool) -> None:
        self._target = target
        self._cache = cache
        self._uv = Path(sys.prefix, "bin", "uv")
        self._pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        if not cache:
            self._pip.append("--no-cache-dir")

    def install(self, lock: Path) -> None:
        """Installs the packages of `lock`.

        Raises:
            InstallError: neither uv nor pip could install them.
        """
        text = lock.read_text()
        uv, rest = split_lock(text)
        count = len(re.findall(r"^[^\s#]+==", text, re.MULTILINE))
        if uv:
            self._bring_uv(uv)
        if self._uv.exists():
            _say(f"Installing the {count} packages of {lock} with uv.")
            if self._sync(lock):
                return
            _say("uv failed; pip tries the same.")
        _say(f"Installing the {count} packages of {lock} with pip. This can take some minutes.")
        if not self._pip_install(text if self._uv.exists() else rest, self._target):
            raise InstallError(_help(lock))

    def install_project(self, path: Path, *, editable: bool) -> None:
        """Installs the folder or wheel at `path`, with the installed build tools.

        Raises:
            InstallError: it could not be built or installed.
        """
        what: list[str | Path]
        what = ["--no-deps", "--no-build-isolation", *(["--editable"] if editable else []), path]
        scripts = Path(sys.executable).parent  # protoc finds its plug-ins on PATH
        path_first = {"PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        if self._uv.exists():
            # The cache is not used, because it does not notice a changed .proto.
            command: list[str | Path]
            command = [self._uv, "pip", "install", "--offline", "--no-cache", "--quiet"]
            command += ["--python", self._target, *what]
            done = _run(command, uv_environment({}, os.environ) | path_first)
        else:
            command = [*self._pip, *self._elsewhere(self._target), "install", "--quiet"]
            command += ["--no-index", "--no-compile", *what]
            done = _run(command, _pip_environment() | path_first)
        if not done:
            raise InstallError(f"{path} could not be installed.")

    def _bring_uv(self, pinned: str) -> None:
        _say("Installing uv, which installs the rest.")
        if not self._pip_install(pinned, Path(sys.executable)):
            self._uv.unlink(missing_ok=True)
            _say("uv cannot be installed here; pip does its work.")

    def _pip_install(self, pinned: str, python: Path) -> bool:
        with tempfile.NamedTemporaryFile("w", suffix=".lock", encoding="utf-8") as lock:
            lock.write(pinned)
            lock.flush()
            command = [*self._pip, *self._elsewhere(python), "install", "--no-compile"]
            command += ["--progress-bar", "off", "--no-deps", "--require-hashes"]
            command += ["--only-binary", ":all:", "-r", lock.name]
            return _run(command, _pip_environment())

    @staticmethod
    def _elsewhere(python: Path) -> list[str]:
        return [] if python == Path(sys.executable) else ["--python", str(python)]

    def _sync(self, lock: Path) -> bool:
        command: list[str | Path] = [self._uv, "pip", "sync", "--require-hashes", "--no-build"]
        command += ["--python", self._target, lock]
        settings = pip_settings()
        environment = uv_environment(settings, os.environ)
        if _is_set(settings.get("no-index")):
            command.append("--no-index")
        if not self._cache or not self._may_cache(environment):
            command.append("--no-cache")
        return _run(command, environment)

    def _may_cache(self, environment: Mapping[str, str]) -> bool:
        """Returns whether uv can write to its cache; an account may have no home of its own."""
        asked = subprocess.run(  # noqa: S603
            [self._uv, "cache", "dir"], capture_output=True, text=True, check=False, env=environment
        )
        place = Path(asked.stdout.strip())
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return asked.returncode == 0 and os.access(place, os.W_OK)


def _help(lock: Path) -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"The packages of {lock} could not be installed; the lines above say why.\n"
        f"- They come from the index that pip is set to use. PIP_INDEX_URL names another one, "
        "PIP_PROXY a proxy, PIP_CERT the certificates to trust; PIP_NO_INDEX=1 with "
        "PIP_FIND_LINKS=FOLDER takes them from a folder.\n"
        "- They are built for Python 3.11 to 3.14, on Linux and on macOS with Apple silicon; this "
        f"is Python {version}."
    )


def main() -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lock", type=Path, metavar="LOCK")
    parser.add_argument("--python", type=Path, metavar="OTHER", default=Path(sys.executable))
    parser.add_argument("--project", type=Path, metavar="PATH")
    parser.add_argument("--editable", action="store_true")
    parser.add_argument("--no-cache", action="store_true")
    asked = parser.parse_args()
    installer = Installer(asked.python, cache=not asked.no_cache)
    try:
        installer.install(asked.lock)
        if asked.project is not None:
            installer.install_project(asked.project, editable=asked.editable)
    except InstallError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
