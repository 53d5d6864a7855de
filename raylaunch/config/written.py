"""What was written in YAML or after ``--set``: where a setting is text, YAML would make a number or boolean of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from raylaunch.errors import ConfigError
from raylaunch.values.masking import looks_secret

TEXTS = (
    "debug_folder", "engine.sglang.cache_dir", "model.load_format", "model.path", "model.revision", "model.tokenizer",
    "name", "placement.address", "placement.namespace", "placement.placement_group", "serve.api_key",
    "serve.chat_template", "serve.host", "serve.served_model_name",
)  # fmt: skip
"""Settings that are text, whatever it looks like; so are all of ``environment``."""

ENVIRONMENT = "environment."
DATE = "tag:yaml.org,2002:timestamp"
MALFORMED = (ValueError, LookupError, AttributeError, OverflowError)
"""What PyYAML (6.0) raises over ``!!int x``, ``!!bool x``, ``!!timestamp x`` and ``"\\UFFFFFFFF"``."""


def is_text(key: str) -> bool:
    """Whether the setting of this dotted name is text."""
    return key in TEXTS or key.startswith(ENVIRONMENT)


@dataclass(frozen=True)
class Written:
    """A scalar that YAML reads as something else than text, and how it was written."""

    value: Any
    text: str


class Loader(yaml.SafeLoader):
    """Keeps how scalars were written, and refuses a key that is repeated: YAML forbids it, PyYAML lets the last win.
    Dates stay text: no setting is one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value} is repeated", key.start_mark)
            seen.add(name)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        made = super().construct_object(node, deep)
        is_written = isinstance(node, yaml.ScalarNode) and not isinstance(made, str | bytes | None)
        return Written(made, node.value) if is_written else made


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str, source: str = "", prefix: str = "") -> Any:
    """What the YAML says: plain data, with numbers and dates as they were written where the setting is text.

    Args:
        source: the file, for messages.
        prefix: dotted name of the setting that the text is the value of; "" for a whole file.
    Raises:
        yaml.YAMLError: it is no YAML, or a key is repeated.
        ConfigError: true, yes or nothing where text is wanted: nobody can know what was meant.
    """
    try:
        return _converted(yaml.load(text, Loader), prefix, source)
    except RecursionError:
        raise yaml.YAMLError("it is nested without end, or too deeply") from None
    except yaml.MarkedYAMLError as error:
        for mark in (error.context_mark, error.problem_mark):
            if mark is not None:
                mark.buffer = None  # the text there may be a secret
        raise
    except MALFORMED:
        raise _malformed() from None


def _malformed() -> yaml.YAMLError:
    """Without what PyYAML says, which is the value: it may be a secret."""
    return yaml.YAMLError("a value is not what its tag says, or has a character that there is not")


def _converted(value: Any, key: str, source: str) -> Any:
    if isinstance(value, Mapping):
        return {
            _plain(name): _converted(inner, f"{key}.{_plain(name)}" if key else str(_plain(name)), source)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_converted(one, f"{key}.{number}", source) for number, one in enumerate(value)]
    if is_text(key):
        if isinstance(value, Written) and isinstance(value.value, bool):
            expected = f"must be text, and YAML reads {value.text} as {str(value.value).lower()}: write '{value.text}'"
            raise ConfigError(key, value.value, f"{expected}, with its quotes", source)
        if value is None and key.startswith(ENVIRONMENT):
            raise ConfigError(key, None, "must be text: write '' for a variable that is set and empty", source)
        return value.text if isinstance(value, Written) else value
    return _plain(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Written) else value


def read_setting(key: str, text: str) -> Any:
    """The value of ``--set KEY=TEXT``.

    Where the setting is text the value is TEXT as it stands, unless it is quoted; null or nothing is None, but of
    ``environment``. Elsewhere it is read as YAML; what YAML would take for a comment is not left out.

    Raises:
        ConfigError: it is no YAML, or has a comment in a list or mapping.
    """
    check_encoding(text, key=key)
    stripped = text.strip()
    if is_text(key) and not stripped.startswith(("'", '"')):
        return None if stripped in ("", "null") and not key.startswith(ENVIRONMENT) else stripped
    try:
        dropped = _has_comment(text)
        if dropped and not is_text(key) and _is_plain(text):
            return stripped
        value = read(text, prefix=key)
    except yaml.YAMLError as error:
        hint = f"quote what is text: --set '{key}=\"...\"'"
        if looks_secret(key):
            raise ConfigError(key, text, f"not readable as a YAML value; {hint}") from None
        raise ConfigError(key, text, f"not readable as a YAML value: {error}; {hint}") from None
    if dropped:
        raise ConfigError(key, text, "what follows # would be left out as a comment: quote it, or leave it out")
    return value


def check_encoding(data: Any, source: str = "", key: str = "") -> None:
    """Raises :class:`ConfigError` where a text cannot be sent to ranks or printed: an argument or a file's name that is
    not in UTF-8, half of a surrogate pair in YAML."""
    if isinstance(data, str):
        if key == "serve.api_key":
            return  # its own check says what a key may hold
        try:
            data.encode()
        except UnicodeEncodeError:
            text = data.encode("utf-8", "surrogateescape" if _from_bytes(data) else "backslashreplace")
            expected = "is not valid UTF-8: ranks are told settings in UTF-8; rename it, or give a link to it"
            raise ConfigError(key, text.decode("utf-8", "backslashreplace"), expected, source) from None
    elif isinstance(data, Mapping):
        for name, inner in data.items():
            check_encoding(name, source, key or "a key")
            check_encoding(inner, source, f"{key}.{name}" if key else str(name))
    elif isinstance(data, list | tuple):
        for number, inner in enumerate(data):
            check_encoding(inner, source, f"{key}.{number}")


def _from_bytes(text: str) -> bool:
    """Whether what cannot be encoded stands for bytes, as Python reads them in arguments and names of files."""
    return all("\udc80" <= one <= "\udcff" for one in text if "\ud800" <= one <= "\udfff")


def _has_comment(text: str) -> bool:
    spans = [(token.start_mark.index, token.end_mark.index) for token in _scalars(text)]
    return any(mark == "#" and not any(a <= at < b for a, b in spans) for at, mark in enumerate(text))


def _is_plain(text: str) -> bool:
    """Whether the text, without its comment, is one scalar without quotes, or nothing."""
    kinds = [type(token) for token in _tokens(text)]
    plain = all(token.plain for token in _scalars(text))
    return plain and kinds in (
        [yaml.StreamStartToken, *middle, yaml.StreamEndToken] for middle in ([], [yaml.ScalarToken])
    )


def _scalars(text: str) -> list[yaml.ScalarToken]:
    return [token for token in _tokens(text) if isinstance(token, yaml.ScalarToken)]


def _tokens(text: str) -> list[yaml.Token]:
    try:
        return list(yaml.scan(text, yaml.SafeLoader))
    except MALFORMED:
        raise _malformed() from None
