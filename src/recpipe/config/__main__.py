"""Show the resolved configuration, every value with its origin: a file and a key, or the command line.

python -m recpipe.config show --params dataset=ml-1m,model=tiger
python -m recpipe.config show models.tiger.train protocol --params dataset=ml-1m,model=tiger
python -m recpipe.config diff --params dataset=ml-1m,model=sasrec+esasrec
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recpipe.config.checks import ConfigError, split_names
from recpipe.config.files import COMMAND_LINE, Leaf, parse_overrides
from recpipe.config.resolve import Configuration
from recpipe.config.run_config import ModelInfo

WIDEST_VALUE = 40  # characters; longer values push their origin to the right


def main(arguments: list[str] | None = None) -> int:
    """Print the values; return 1 after an error, which is one line."""
    options = _parser().parse_args(arguments)
    try:
        configuration = Configuration.read(
            options.conf, options.env, parse_overrides(options.params), _model_info
        )
        models = (
            configuration.model_names
            if configuration["model"] == "all"
            else list(split_names(configuration["model"]))
        )
        for name in models:
            configuration.run(name)
        lines = (
            differences(configuration, models) if options.command == "diff" else values(configuration, models)
        )
        sys.stdout.writelines(f"{line}\n" for line in _selection(lines, options.keys))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head`
        return 0
    return 0


def values(configuration: Configuration, models: list[str]) -> dict[str, str]:
    """Lines by key. ``train`` and ``side`` are left to the models, ids settings that all kinds share stand once."""
    origins = configuration.origins(models)
    return {key: _line(key, leaf) for key, leaf in origins.items() if not _is_repeated(key, leaf, origins)}


def differences(configuration: Configuration, models: list[str]) -> dict[str, str]:
    """Lines by key for the settings in which models differ."""
    trees = {name: _below(configuration.origins([name]), f"models.{name}.") for name in models}
    keys = dict.fromkeys(key for tree in trees.values() for key in tree)
    lines = {}
    for key in keys:
        texts = [_text(tree[key].value) if key in tree else "-" for tree in trees.values()]
        if len(set(texts)) > 1:
            pairs = zip(models, texts, strict=True)
            lines[key] = f"{key:40} " + "  ".join(f"{name}: {text}" for name, text in pairs)
    return lines


def _below(origins: dict[str, Leaf], prefix: str) -> dict[str, Leaf]:
    return {key.removeprefix(prefix): leaf for key, leaf in origins.items() if key.startswith(prefix)}


def _is_repeated(key: str, leaf: Leaf, origins: dict[str, Leaf]) -> bool:
    if key.startswith(("train.", "side.")):
        return True
    parts = key.split(".")
    return (
        parts[:2] == ["semantic_ids", "kinds"] and origins.get(".".join(["semantic_ids", *parts[3:]])) == leaf
    )


def _line(key: str, leaf: Leaf) -> str:
    place = leaf.file if leaf.file == COMMAND_LINE else leaf.origin
    return f"{key:45} {_text(leaf.value):{WIDEST_VALUE}}  # {place}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _selection(lines: dict[str, str], keys: list[str]) -> list[str]:
    selection = [
        line
        for key, line in lines.items()
        if not keys or any(key == each or key.startswith(f"{each}.") for each in keys)
    ]
    if keys and not selection:
        raise ConfigError(f"nothing is called {' or '.join(keys)}; give no key to see all of them")
    return selection


def _model_info(type_: str) -> ModelInfo:
    from recpipe.models import registry  # of this command only: the package itself imports no models

    return registry.model_info(type_)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m recpipe.config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command", choices=("show", "diff"), help="show values, or how the models of --params differ"
    )
    parser.add_argument(
        "keys", nargs="*", help="only these keys or blocks, such as protocol or models.tiger.train"
    )
    parser.add_argument("--params", default="", metavar="KEY=VALUE,...", help="as of `kedro run`")
    parser.add_argument("--env", default=None, help="the environment over base; by default local")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="the folder with base/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
