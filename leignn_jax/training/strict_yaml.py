"""YAML of settings: nothing is said twice, nothing is made huge by aliases, no code."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from leignn_jax.errors import ConfigError

# No config says so much, even with every value of a sweep.
_MOST_VALUES = 100_000


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; ConfigError where it is none or a key stands twice in it."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError("not a text file. A config is YAML, such as `data: {train: frames.extxyz}`.") from error


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; ConfigError where it is none, a key stands twice, or its aliases make it huge."""
    try:
        loader = StrictLoader(text)
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"not readable as YAML: {error}") from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"not readable as YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError("nested too deeply.") from error
    finally:
        loader.dispose()


def _check_size(node: yaml.Node) -> None:
    """Raise ConfigError where the values of a text are too many once each alias stands for what it names."""
    sizes: dict[int, int | None] = {}

    def size(one: yaml.Node) -> int:
        if id(one) not in sizes:
            sizes[id(one)] = None  # on the way
            inner = one.value if isinstance(one, yaml.CollectionNode) else []
            pairs = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(one)] = 1 + sum(map(size, pairs))
        found = sizes[id(one)]
        if found is None:
            raise ConfigError(f"line {one.start_mark.line + 1}: an alias stands within what it names.")
        return found

    if size(node) > _MOST_VALUES:
        raise ConfigError(f"holds more than {_MOST_VALUES} values once its aliases are written out.")


class StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML keeps the last in silence; 1e-3 is a number in it."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # "<<" may be overruled
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a list or section can't be a key.")
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} stands twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML asks for a point and the exponent's sign, which YAML 1.2 does not.
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
