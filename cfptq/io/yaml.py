"""YAML read with the safe loader, every key once."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A mapping has one key twice; the message says which and where."""


class UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, but a key written twice in one mapping is an error: YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where the mapping is built: by then a merge (<<) has added keys that may well be written over.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise RepeatedKeyError(f"line {key.start_mark.line + 1} repeats the key {key.value!r}")
            seen.add(key.value)
        return node
