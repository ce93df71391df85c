"""Files of a user's, read within bounds: a FIFO does not block, a device does not fill the memory, YAML stays plain data."""

import errno
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MIB = 2**20
_YAML_BYTES = 2**17  # some thousand parameters; PyYAML reads about 100 KiB a second


def read_bounded(path: str | Path, limit_bytes: int = 64 * MIB) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: there is none that can be read, it is a folder, FIFO or device, or larger than `limit_bytes`; names the path.
    """
    try:
        # Opening a FIFO waits for its writer, unless it is asked not to; regular files are read as ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(path))
            content = file.read(limit_bytes + 1)
    except ValueError as error:  # a NUL character, or half of one, in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes / MIB:g} MiB, which no such file is", str(path))
    return content


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
