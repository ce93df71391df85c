"""YAML of a user's, as plain data within bounds."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .paths import read_bounded

_YAML_BYTES = 2**17  # some thousand parameters; PyYAML reads about 100 KiB a second


class _PlainLoader(yaml.SafeLoader):
    """Takes no aliases, which can stand for more than memory holds, and no name twice in a mapping."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"alias *{alias.anchor}: write the value out", problem_mark=alias.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise yaml.MarkedYAMLError(problem=f"{repeated[0]!r} stands there twice: keep one", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Plain data of a YAML file.

    Raises:
        OSError: it cannot be read, or is larger than 128 KiB.
        ValueError: it is not UTF-8 or YAML, has aliases, a name twice, values that do not exist, or brackets without end.
    """
    try:
        return yaml.load(read_bounded(path, _YAML_BYTES).decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # `!!int x`, `!!timestamp x`, 5,000 brackets
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None
