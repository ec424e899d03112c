"""A safe YAML loader that rejects repeated keys, deep nesting and documents that expand beyond bounds."""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 50  # Deeper documents are refused. Those that cfptq writes have at most five levels.
MAX_NODES = 2**21  # Values of a document with its aliases written out. Larger documents are refused.


class RepeatedKeyError(yaml.YAMLError):
    """A mapping that holds one key twice."""


class OversizeError(yaml.YAMLError):
    """A document that is nested too deeply or holds too many values."""


class UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader with an error for a key that stands twice in one mapping.

    PyYAML itself keeps the last value without a warning. Every other fault of a document is a ``yaml.YAMLError`` too, such as a month
    13 or more than ``MAX_DEPTH`` brackets.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise OversizeError(f"line {mark.line + 1} is nested in more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise OversizeError(f"line {mark.line + 1} refers to a value from within itself")
        if not is_alias and node is not None:
            self._sizes[id(node)] = size = 1 + sum(self._sizes[id(child)] for child in _list_children(node))
            if size > MAX_NODES:
                raise OversizeError(f"line {mark.line + 1} begins more than {MAX_NODES} values")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Keys are checked before a merge (<<) adds keys that may be overwritten.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise RepeatedKeyError(f"line {key.start_mark.line + 1} repeats the key {key.value!r}")
            seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
            # PyYAML lets errors of its conversions through, such as that of an impossible date.
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} cannot be read as {node.tag.rpartition(':')[2]}") from error


def _list_children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
