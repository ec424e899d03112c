"""A safe YAML loader that rejects repeated keys."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A mapping that holds one key twice."""


class UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader with an error for a key that stands twice in one mapping.

    PyYAML itself keeps the last value without a warning.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Keys are checked before a merge (<<) adds keys that may be overwritten.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise RepeatedKeyError(f"line {key.start_mark.line + 1} repeats the key {key.value!r}")
            seen.add(key.value)
        return node
