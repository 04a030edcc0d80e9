"""Settings from a YAML file and from the command line, checked; and back into a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from blip_fast.checkpoints.files import write_text
from blip_fast.config import nearest
from blip_fast.training.settings import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)


class SettingsError(ValueError):
    """The settings cannot be used; the message has a line for every reason."""


def find_config(path: Path) -> Path:
    """The file itself, or where there is none the file of that name that comes with blip_fast.

    Case does not count there: published texts also write Pretrain.yaml. SettingsError where there is neither.
    """
    if path.is_file():
        return path
    shipped = Path(str(resources.files("blip_fast.configs").joinpath(path.name.lower())))
    if shipped.suffix == ".yaml" and shipped.is_file():
        return shipped
    raise SettingsError(f"config={str(path)!r} is no file; expected a YAML file with settings")


def load_settings(settings_class: type[Settings], file: Path, overrides: Iterable[str] = ()) -> Settings:
    """Settings of a YAML file; ``overrides`` are "key=value" with a YAML value, "model.field=value" for one field.

    Raises SettingsError that names every unknown key, with the nearest known one, and every value that does not fit.
    """
    values = read_yaml(file)
    for override in overrides:
        _apply(values, override)
    return checked(settings_class, values, str(file))


def checked(settings_class: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """Settings of ``values``; ``source`` is named in errors."""
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        lines = [_reason(settings_class, entry) for entry in error.errors(include_url=False)]
        raise SettingsError(f"{source}: " + f"\n{source}: ".join(lines)) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Numbers like 1e-5, text to PyYAML, become numbers when they are checked."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{file} holds a {type(values).__name__}; expected a mapping of keys to values")
    for key in values:
        if not isinstance(key, str):
            raise SettingsError(f"{file} has the key {key!r}; expected a name")
    return values


def write_settings(settings: RunSettings, file: Path) -> None:
    """Write all settings, defaults too, as YAML that `load_settings` reads."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(file, text)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"--set {override!r}: expected key=value")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override!r}: the value is no YAML") from error
    name, dot, field = key.partition(".")
    if not dot:
        values[name] = value
        return
    inner = values.get(name) or {}
    if not isinstance(inner, dict):
        raise SettingsError(f"--set {override!r}: {name} has no fields")
    values[name] = inner | {field: value}


def _reason(settings_class: type[RunSettings], entry: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(key, settings_class.model_fields)}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{key}={entry['input']!r}: {message[0].lower()}{message[1:]}"
