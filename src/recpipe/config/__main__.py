"""Show the resolved configuration, every value with its origin: a file and a key, or the command line.

recpipe config show --params dataset=ml-1m,model=tiger
recpipe config show models.tiger.train protocol --params dataset=ml-1m,model=tiger
recpipe config diff --params dataset=ml-1m,model=sasrec+esasrec

``describe`` shows the type, default and meaning of keys: recpipe config describe train.window
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

from recpipe.config.checks import ConfigError, split_names
from recpipe.config.files import COMMAND_LINE, Leaf, parse_overrides
from recpipe.config.reference import Reference
from recpipe.config.resolve import Configuration
from recpipe.config.run_config import ModelInfo

VALUE_WIDTH = 40  # characters; longer values push their origin to the right


def main(arguments: list[str] | None = None) -> int:
    """Print the values; return 1 after an error (ConfigError), which is one line."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "describe":
            sys.stdout.write(describe(options.conf, options.keys))
            return 0
        overrides = parse_overrides(options.params)
        configuration = Configuration.read(options.conf, options.env, overrides, _model_info)
        configuration.check_one_protocol()
        names = configuration["model"]
        models = configuration.model_names if names == "all" else list(split_names(names))
        for name in models:
            configuration.run(name)
        lines, keys = (show if options.command == "show" else diff)(configuration, models), options.keys
        prefixes = tuple(f"{key}." for key in keys)
        selection = [line for key, line in lines.items() if not keys or f"{key}.".startswith(prefixes)]
        if keys and not selection:
            raise ConfigError(f"nothing is called {' or '.join(keys)}; give no key to see all of them")
        sys.stdout.writelines(f"{line}\n" for line in selection)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head`
        return 0
    return 0


def show(configuration: Configuration, models: list[str]) -> dict[str, str]:
    """Return lines by key; ``train`` and ``side`` only as blocks of models, settings common to all id kinds once."""
    origins, lines = configuration.origins(models), {}
    for key, leaf in origins.items():
        if not _is_repeated(key, leaf, origins):
            place = leaf.file if leaf.file == COMMAND_LINE else leaf.origin
            lines[key] = f"{key:45} {_text(leaf.value):{VALUE_WIDTH}}  # {place}"
    return lines


def diff(configuration: Configuration, models: list[str]) -> dict[str, str]:
    """Return lines by key for the settings in which models differ."""
    settings: list[dict[str, str]] = []
    for name in models:
        prefix = f"models.{name}."
        origins = configuration.origins([name]).items()
        settings.append(
            {key.removeprefix(prefix): _text(leaf.value) for key, leaf in origins if key.startswith(prefix)}
        )
    lines = {}
    for key in dict.fromkeys(key for model in settings for key in model):
        texts = [model.get(key, "-") for model in settings]
        if len(set(texts)) > 1:
            pairs = zip(models, texts, strict=True)
            lines[key] = f"{key:40} " + "  ".join(f"{name}: {text}" for name, text in pairs)
    return lines


def describe(conf: Path, keys: list[str]) -> str:
    """Return type, default, file and meaning of each key; of a block those of its keys. Raises ConfigError."""
    reference = Reference(conf)
    if not keys:
        raise ConfigError("describe needs a key, such as train.window, or a block, such as serve")
    texts = []
    for setting in (setting for key in keys for setting in reference.find(key)):
        variant = f" ({setting.variant})" if setting.variant else ""
        default = f", default {setting.default}" if setting.default else ""
        place = f"  # {setting.file}" if setting.file else ""
        line = f"{setting.key}{variant}: {setting.type}{default}".replace("`", "")
        meaning = textwrap.fill(setting.meaning, 100, initial_indent="  ", subsequent_indent="  ")
        texts.append(f"{line}{place}\n{meaning}\n")
    return "".join(texts)


def _is_repeated(key: str, leaf: Leaf, origins: dict[str, Leaf]) -> bool:
    if key.startswith(("train.", "side.")):
        return True
    parts = key.split(".")
    common_key = ".".join(["semantic_ids", *parts[3:]])
    return parts[:2] == ["semantic_ids", "kinds"] and origins.get(common_key) == leaf


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _model_info(type_: str) -> ModelInfo:
    from recpipe.models import registry  # of this command only: the package itself imports no models

    return registry.model_info(type_)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recpipe config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("show", "diff", "describe"), help="values; how models differ; meanings")
    parser.add_argument("keys", nargs="*", help="only these keys or blocks, such as protocol or models.tiger.train")
    parser.add_argument("--params", default="", metavar="KEY=VALUE,...", help="as in `kedro run`")
    parser.add_argument("--env", default=None, help="environment over base; by default local")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="folder with base/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
