"""A whole configuration as YAML that starts the same launch, and the JSON schema of all settings."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from raylaunch.config.described import attributes_of
from raylaunch.config.launch_config import LaunchConfig
from raylaunch.config.overrides import BY_KIND
from raylaunch.config.types import Section
from raylaunch.values.masking import masked

SECRET = "a secret that is not shown: give it again"
LINE_BREAKS = "\x85\u2028\u2029"
"""To YAML, beside those of a text file; PyYAML (6.0) would write them so that something else is read again."""


def as_yaml(config: LaunchConfig) -> str:
    """Every setting: those that were set, and as comments those that were not, whose defaults an engine may choose by
    itself. No secret is among them; a comment stands in its place."""
    return "\n".join(_lines(config, "")) + "\n"


def _lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        was_set = name in section.model_fields_set
        if isinstance(value, Section):
            inner = list(_lines(value, f"{indent}  "))
            yield f"{indent}{key}:" if any(not line.lstrip().startswith("#") for line in inner) else f"{indent}# {key}:"
            yield from inner
        else:
            yield from _setting(key, value, indent, was_set)


def _setting(key: str, value: Any, indent: str, was_set: bool) -> Iterator[str]:
    value = _plain(value)
    shown = masked(key, value)
    if isinstance(value, Mapping):
        hidden = [name for name in value if shown[name] != value[name]]
        for name in hidden:
            yield f"{indent}# {key}.{name}: {SECRET}"
        value = {name: one for name, one in value.items() if name not in hidden}
        was_set = was_set and (bool(value) or not hidden)
    elif shown != value:
        yield f"{indent}# {key}: {SECRET}"
        return
    of_many = isinstance(value, list | Mapping)
    data = value if of_many else {key: value}
    options: dict[str, Any] = {"sort_keys": False, "width": 1 << 20, "default_flow_style": of_many}
    text = yaml.safe_dump(data, allow_unicode=True, **options)
    if any(one in text for one in LINE_BREAKS):
        text = yaml.safe_dump(data, **options)
    if of_many:
        text = f"{key}: {text}"
    for line in text.splitlines():
        yield f"{indent}{line}" if was_set else f"{indent}# {line}"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def as_schema() -> str:
    """The JSON schema of a configuration's file, each setting with its description."""
    schema = LaunchConfig.model_json_schema(by_alias=True)
    sections = {"LaunchConfig": schema, **schema["$defs"]}
    for section in _sections(LaunchConfig):
        about, described = attributes_of(section)
        made = sections[section.__name__]
        made["description"] = about
        for name, field in section.model_fields.items():
            if name in described:
                made["properties"][field.alias or name]["description"] = described[name]
    for name in BY_KIND:
        own = schema["properties"][name]
        kinds = sections[own["$ref"].rsplit("/", 1)[1]]["properties"]["kind"]["enum"]
        schema["properties"][name] = {"anyOf": [{"$ref": own["$ref"]}, {"enum": kinds}], "description": "or its kind"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2)


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for one in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(one, type) and issubclass(one, Section):
                yield from _sections(one)
