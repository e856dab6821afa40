"""Where settings come from: flags, variables and a TOML file, all derived from the fields of one pydantic model.

The model states everything about a setting once: name, type, default, constraints, description and group. This module
reads the sources in rising order (defaults, TOML file, `SLICEVOTE_` variables, flags), remembers where every value came
from, and reports whatever is wrong in one sentence each.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import annotated_types
import typer
from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

PREFIX = "SLICEVOTE_"

CONFIG_VARIABLE = f"{PREFIX}CONFIG"

DEFAULT = "default"
"""Origin of a value that no source has."""

REQUIRED = "required"
"""Default of a setting that has none."""

_MASK = "**********"

_OTHER_PROGRAMS = re.compile(
    r"SLICEVOTE_(SERVER|PATIENT_SECRET|TOKEN|TOKEN_FILE|(CLIENT|GATEWAY|EXPORT|EVALUATE|DEMO|TEST)_.*)"
)
"""Variables of other programs: the client's by name, those of all others by their prefix."""

_KUBERNETES = re.compile(r"SLICEVOTE_(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes sets in every container beside a service named slicevote; SLICEVOTE_PORT is known by its value."""

ModelT = TypeVar("ModelT", bound=BaseSettings)


class ConfigurationError(Exception):
    """Settings are wrong.

    Attributes:
        problems: One sentence each: where the setting is, what is wrong, and what is allowed.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True)
class Setting:
    """What the help, the reference and the errors say of a setting.

    Attributes:
        name: Name of the field, and the key in a TOML file.
        group: Heading that it stands under.
        type: The allowed values, as a noun phrase.
        default: The default in words.
        description: What it does.
        metavar: Placeholder of the value in the help; empty for a boolean.
    """

    name: str
    group: str
    type: str
    default: str
    description: str
    metavar: str

    @property
    def key(self) -> str:
        """Key in a TOML file."""
        return self.name

    @property
    def flag(self) -> str:
        """Option on the command line; booleans have a second one, `--no-...`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def negative_flag(self) -> str:
        """Option that sets a boolean to false; empty for others."""
        return "" if self.metavar else f"--no-{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return f"{PREFIX}{self.name.upper()}"


@dataclass(frozen=True)
class Configuration(Generic[ModelT]):
    """Settings, and where each of them came from.

    Attributes:
        settings: The settings.
        origins: For every field `DEFAULT`, a file and line, a variable, or a flag.
    """

    settings: ModelT
    origins: Mapping[str, str]

    def effective(self) -> Iterator[tuple[Setting, Any, str]]:
        """Return every setting with its value as plain data, secrets masked, and its origin."""
        for setting in describe(type(self.settings)):
            yield setting, plain(getattr(self.settings, setting.name)), self.origins[setting.name]

    def require(self, *names: str) -> None:
        """Check that settings have a value.

        Raises:
            ConfigurationError: Some have none.
        """
        problems = [
            f"{setting.flag} is missing; give it, or set {setting.variable} or '{setting.key}' in the file of --config"
            for setting in describe(type(self.settings))
            if setting.name in names and not getattr(self.settings, setting.name)
        ]
        if problems:
            raise ConfigurationError(problems)


def setting(
    group: str,
    description: str,
    default: Any,
    *,
    metavar: str = "",
    type: str = "",
    default_text: str = "",
    choices: Iterable[str] = (),
    **constraints: Any,
) -> Any:
    """Return a field of a settings model.

    Args:
        group: Heading that the setting stands under.
        description: What it does, in one or two sentences.
        default: Its value if no source has one.
        metavar: Placeholder of the value in the help; by default the type's.
        type: The allowed values, as a noun phrase; by default made from the type and the constraints.
        default_text: The default in words, where the value itself says too little.
        choices: The allowed values of a string.
        constraints: Those of `pydantic.Field`, such as `ge` and `le`.
    """
    choices = tuple(choices)
    if choices:
        constraints["pattern"] = f"^({'|'.join(map(re.escape, choices))})$"
        type = type or f"one of {', '.join(choices)}"
        metavar = metavar or "NAME"
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "type": type, "default_text": default_text}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def describe(model: type[BaseSettings]) -> tuple[Setting, ...]:
    """Return what there is to say of every setting, in the order of the model's fields."""
    return tuple(_describe(name, field) for name, field in model.model_fields.items())


def read(
    model: type[ModelT],
    *,
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration[ModelT]:
    """Read settings from all sources.

    Args:
        model: The settings.
        flags: Values of flags by field, only of those that were given.
        config: A TOML file with field names as keys, without tables.
        environment: The variables; by default those of the process.

    Raises:
        ConfigurationError: A name is unknown, a value is not allowed, or the file cannot be read.
    """
    known = {setting.name: setting for setting in describe(model)}
    flags = flags or {}
    environment = os.environ if environment is None else environment
    in_file, lines = _read_file(config)
    places = {
        name: f"{config}, line {lines[name]}: {name}" if name in lines else f"{config}: {name}" for name in in_file
    }
    problems = [
        f"{places[name]}: there is no such setting{_did_you_mean(name, known)}" for name in in_file if name not in known
    ]
    problems += _unknown_variables(known, environment)
    in_environment = _read_variables(model, environment)
    places |= {name: known[name].variable for name in in_environment}
    places |= {name: known[name].flag for name in flags}
    values = {name: value for name, value in in_file.items() if name in known} | in_environment | dict(flags)
    try:
        settings = model(**values)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors()}
        problems += [
            _bad_value(setting, values[name], places[name]) for name, setting in known.items() if name in wrong
        ]
        raise ConfigurationError(problems) from None
    if problems:
        raise ConfigurationError(problems)
    origins = {name: _origin(places[name]) if name in places else DEFAULT for name in known}
    return Configuration(settings, origins)


def with_options(command: Callable[..., None], model: type[BaseSettings], usual: str) -> Callable[..., None]:
    """Return a command that typer gives `--config` and a flag for every setting.

    Args:
        command: Takes `config`, the options of its own, and `flags`, a mapping of those that were given.
        model: The settings.
        usual: The group that is shown first, together with `--help`.
    """

    def run(**given: Any) -> None:
        flags = {name: given.pop(name) for name in model.model_fields}
        command(flags={name: value for name, value in flags.items() if value not in (None, [])}, **given)

    own = [
        parameter for name, parameter in inspect.signature(command, eval_str=True).parameters.items() if name != "flags"
    ]
    parameters = [
        *(_option(setting, model.model_fields[setting.name], usual) for setting in describe(model)),
        *own,
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def plain(value: Any) -> Any:
    """Return a setting's value as plain data, a secret masked."""
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def text(value: Any) -> str:
    """Return a setting's value in words, a secret masked."""
    value = plain(value)
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


_KINDS: Mapping[type, tuple[str, str]] = {
    bool: ("true or false", ""),
    int: ("an integer", "INTEGER"),
    float: ("a number", "NUMBER"),
    Path: ("a path", "PATH"),
    SecretStr: ("a secret", "SECRET"),
    str: ("a text", "TEXT"),
}


def _describe(name: str, field: FieldInfo) -> Setting:
    extra: Any = field.json_schema_extra
    kind = next(kind for kind in _KINDS if _has(field, kind))
    noun, metavar = _KINDS[kind]
    lower = [entry.ge for entry in field.metadata if isinstance(entry, annotated_types.Ge)]
    upper = [entry.le for entry in field.metadata if isinstance(entry, annotated_types.Le)]
    if lower and upper:
        noun += f" from {lower[0]:g} to {upper[0]:g}" if kind is float else f" from {lower[0]} to {upper[0]}"
    elif lower:
        noun += f" of at least {lower[0]}"
    return Setting(
        name=name,
        group=extra["group"],
        type=extra["type"] or noun,
        default=extra["default_text"] or text(field.default),
        description=str(field.description),
        metavar="" if kind is bool else extra["metavar"] or metavar,
    )


def _has(field: FieldInfo, kind: type) -> bool:
    """Return whether a field's type is `kind`, or is made of it: a tuple of it, or it or None."""
    pending = [field.annotation]
    while pending:
        annotation: Any = pending.pop()
        if annotation is kind:
            return True
        pending.extend(get_args(annotation))
    return False


def _is_tuple(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _option(setting: Setting, field: FieldInfo, usual: str) -> inspect.Parameter:
    """Return the parameter of a flag. Values come as text: the model converts and checks them for all sources."""
    annotation: Any = str | None
    if not setting.metavar:
        annotation = bool | None
    elif _is_tuple(field):
        entries: Any = get_args(field.annotation)
        repeated = entries[-1] is Ellipsis
        annotation = list[str] | None if repeated else tuple[str, str] | None
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[
            annotation,
            typer.Option(
                f"{setting.flag}/{setting.negative_flag}" if setting.negative_flag else setting.flag,
                help=f"{setting.description} {_default_sentence(setting)}",
                metavar=setting.metavar,
                show_default=False,
                rich_help_panel=None if setting.group == usual else setting.group,
            ),
        ],
    )


def _default_sentence(setting: Setting) -> str:
    return "Required." if setting.default == REQUIRED else f"Default: {setting.default}."


def _read_file(config: Path | None) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values of a TOML file, and the lines that they stand in."""
    if config is None:
        return {}, {}
    try:
        content = config.read_text("utf-8")
        values = tomllib.loads(content)
    except OSError as error:
        raise ConfigurationError(
            [f"the file {config} cannot be read ({error.strerror}); give another --config"]
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError([f"{config} is not valid TOML: {error}"]) from error
    lines: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        match = re.match(r"\s*\[?\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*[\].=]", line)
        if match:
            lines.setdefault(match[1], number)
    return values, lines


def _read_variables(model: type[BaseSettings], environment: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(model)
    source.env_vars = {name.lower(): value for name, value in environment.items() if value}
    return dict(source())


def _unknown_variables(known: Mapping[str, Setting], environment: Mapping[str, str]) -> Iterator[str]:
    variables = {setting.variable for setting in known.values()} | {CONFIG_VARIABLE}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in variables:
            continue
        if _OTHER_PROGRAMS.fullmatch(name) or _KUBERNETES.fullmatch(name) or re.match(r"(tcp|udp|sctp)://", value):
            continue
        # Compared without the prefix that they all share, which would make them all alike.
        near = _did_you_mean(name.removeprefix(PREFIX), [entry.removeprefix(PREFIX) for entry in variables], PREFIX)
        yield f"the variable {name} is no setting of the server{near}; unset or rename it"


def _did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), list(names), 1)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def _bad_value(setting: Setting, value: Any, place: str) -> str:
    if setting.type == _KINDS[SecretStr][0]:
        return f"{place}: the value is not {setting.type}"
    shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f"{place}: '{shown}' is not {setting.type}"


def _origin(place: str) -> str:
    return place.rpartition(": ")[0] or place
