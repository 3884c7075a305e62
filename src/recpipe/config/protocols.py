"""Named protocols: which ones a data set lists, the choice of a command, and the fields of the chosen one.

The block ``protocols`` of the conf defines them. A data set lists those that its results are published under, each with
its own overrides, and the first is its default; one that lists none may use all of them and has no default.
"""

from __future__ import annotations

from dataclasses import dataclass

from recpipe.config.checks import ConfigError, nearest, split_names
from recpipe.config.files import Leaf, Tree, block, merge, to_values

NAME, FOLD = "name", "fold"
NO_NAME = "none"  # value of protocol.name for the common protocol where a data set has a default
FILE = "conf/base/parameters/protocols.yml"


@dataclass(frozen=True)
class NamedProtocols:
    """Protocols that the data set ``dataset`` can be used under.

    definitions: the block ``protocols`` of the conf. overrides: that of the data set, empty where it lists none.
    """

    dataset: str
    definitions: Tree
    overrides: Tree

    @property
    def names(self) -> list[str]:
        """Names that may be chosen, the default of a data set first."""
        return list(self.overrides or self.definitions)

    def choose(self, request: object) -> tuple[str, ...]:
        """Return the names in ``request``, several as a+b; null: the default, ``none``: no name. Raises ConfigError."""
        if request is None:
            return tuple(self.names[:1]) if self.overrides else ()
        names = split_names(request)
        for name in names:
            if name not in self.names:
                raise self._unknown(name)
        return names

    def fields(self, name: str) -> Tree:
        """Return the fields of a protocol, with the overrides of the data set."""
        return merge(block(self.definitions, name), block(self.overrides, name))

    def _unknown(self, name: str) -> ConfigError:
        hint, known = nearest(name, self.names), ", ".join(self.names) or "none"
        if not self.overrides:
            return ConfigError(f"unknown protocol {name!r}{hint}; {FILE} has {known}", name)
        file = f"conf/base/parameters/datasets/{self.dataset}.yml"
        add = f"add `{name}: {{}}` to its `protocols` ({file}) to use it there"
        if name not in self.definitions:
            add = f"define it in {FILE}, and {add}"
        return ConfigError(
            f"{self.dataset} lists no protocol {name!r}{hint}; it has {known}. Choose one, or {add}", name
        )


def with_effective_name(protocol: Tree, common: Tree, fields: Tree, name: str | None) -> Tree:
    """Return ``protocol`` with ``name``, or null where it differs from the named one, ``fields`` over ``common``."""
    if NAME not in protocol and name is None:
        return protocol
    leaf = protocol.get(NAME)
    place = leaf if isinstance(leaf, Leaf) else Leaf(None, "", NAME)
    is_same = name is not None and _values(protocol) == _values(merge(common, fields))
    return {**protocol, NAME: Leaf(name if is_same else None, place.file, place.key)}


def _values(protocol: Tree) -> dict[str, object]:
    """Return the fields besides the name and the fold, which a named protocol leaves open."""
    return {key: value for key, value in to_values(protocol).items() if key not in (NAME, FOLD)}
