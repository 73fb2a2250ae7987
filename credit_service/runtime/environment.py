"""Settings from the environment: read, checked, and shown again, for all programs.

Each program has one class of settings; its fields are its variables, behind a prefix of its own. A
variable that has the prefix and is not a setting stops the start, because it is a misspelt setting.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

PORT_MAX = 65535

# Up to the last @, because a password may have one that was not written as %40.
_PASSWORDS = re.compile(r"(?<=://)(?P<role>[^:@]*:).*(?=@)|(?P<query>password=)[^&]*")


class ConfigurationError(Exception):
    """The settings cannot be used; the message names each one and what is wrong with it."""


class EnvironmentSettings(BaseSettings):
    """Settings of one program.

    Attributes:
        program: its name on the command line.
        reserved: prefixes of other programs that begin with this program's own prefix.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    program: ClassVar[str]
    reserved: ClassVar[tuple[str, ...]] = ()


_Settings = TypeVar("_Settings", bound=EnvironmentSettings)


def is_port(text: str) -> bool:
    """Returns whether a text is a port."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) <= PORT_MAX


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[^\s:\[\]]+|\[[0-9a-fA-F:.]+\]", host) or not is_port(port):
        raise ValueError("must be host:port, such as 127.0.0.1:50051 or [::]:50051")
    return text


HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
Port = Annotated[int, Field(ge=1, le=PORT_MAX)]
Seconds = Annotated[float, Field(gt=0, le=24 * 60 * 60)]


def is_loopback(address: str) -> bool:
    """Returns whether only this machine can connect to a host:port."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variable(kind: type[EnvironmentSettings], name: str) -> str:
    """Names the environment variable of a setting."""
    return str(kind.model_config["env_prefix"]) + name.upper()


def read(kind: type[_Settings]) -> _Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a value cannot be used, or a variable with the prefix is unknown.
    """
    known = [variable(kind, name) for name in kind.model_fields]
    prefix = variable(kind, "")
    ours = sorted(
        name
        for name in os.environ
        if name.upper().startswith(prefix) and not name.startswith(kind.reserved)
    )
    problems = [_unknown(kind, name) for name in ours if name not in known]
    problems += [
        f"{name}: is empty; give it a value or unset it"
        for name in ours
        if name in known and not os.environ[name].strip()
    ]
    if problems:
        raise ConfigurationError("; ".join(problems))
    try:
        return kind()
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(_problem(kind, problem) for problem in error.errors())
        ) from None
    except SettingsError as error:
        # Raised by pydantic-settings for JSON that cannot be read; only its text names the field.
        named = re.search(r'field "(\w+)"', str(error))
        if named is None:
            raise
        example = (kind.model_fields[named[1]].examples or [""])[0]
        raise ConfigurationError(
            f"{variable(kind, named[1])}: must be JSON such as {example}"
        ) from None


def _unknown(kind: type[EnvironmentSettings], name: str) -> str:
    asked = name[len(variable(kind, "")) :].lower()
    nearest = difflib.get_close_matches(asked, kind.model_fields, n=1)
    guess = f", did you mean {variable(kind, nearest[0])}?" if nearest else ";"
    return f"unknown setting {name}{guess} `{kind.program} settings` lists the known ones"


def _problem(kind: type[EnvironmentSettings], problem: ErrorDetails) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    setting, *inner = (str(part) for part in problem["loc"])
    return ": ".join([variable(kind, setting), *([".".join(inner)] if inner else []), text])


def described(settings: EnvironmentSettings) -> Iterator[str]:
    """Describes every setting in lines for people: value, default and meaning; secrets masked."""
    kind = type(settings)
    for name, field in kind.model_fields.items():
        unset = field.default is None or field.default == ()
        default = "unset" if unset else f"default {_shown(field.default)}"
        if name in settings.model_fields_set:
            value = _shown(getattr(settings, name))
            yield f"{variable(kind, name)}={value}  ({default})"
        else:
            yield f"{variable(kind, name)}  ({default})"
        yield f"    {field.description}"


def _shown(value: object) -> str:
    """Writes a setting as the environment takes it, with secrets masked."""
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        masked = _PASSWORDS.sub(r"\g<role>\g<query>***", secret)
        return masked if "://" in secret else "***"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, dict):
        return json.dumps(value, default=_plain)
    return str(value)


def _plain(value: object) -> object:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
