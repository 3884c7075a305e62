"""HTTP service of bundles.

recpipe serve                     newest bundles of the data set in conf
recpipe serve --params dataset=ml-1m,model=tiger,serve.port=8001
recpipe serve data/06_models/online_retail/sasrec shop=data/06_models/my_log/sasrec

Folders are those of a model, a seed or a bundle, each with an optional name; only so are data sets mixed. Requests
that name no model get that of conf, or the first. The environment variable RECPIPE_API_KEY, if set, is the key that
clients must send. Settings: conf/base/parameters/serve.yml.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recpipe.config import ConfigError, Configuration, DataPaths, build_config, parse_overrides, split_names
from recpipe.config.run_config import BUNDLES
from recpipe.training.bundle_folders import log_folder, models_folder, newest_bundle

if TYPE_CHECKING:
    from recpipe.config.schema import ServeConfig

log = logging.getLogger(__name__)

KEY_VARIABLE = "RECPIPE_API_KEY"
MIN_KEY = 16  # characters
ALL = "all"  # value of serve.models


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; return 2 for settings and folders that cannot be served."""
    options = _parser().parse_args(arguments)
    from recpipe.config.schema import ServeConfig

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    try:
        configuration = Configuration.read(options.conf, options.env, parse_overrides(options.params))
        config = build_config(ServeConfig, configuration["serve"], where="serve", file_hint=configuration.file_hint)
        api_key = check_access(config.host, os.environ.get(KEY_VARIABLE))
        paths = DataPaths(**configuration.parameters()["paths"])
        find = model_finder(options.bundles, paths, config.models, BUNDLES[config.bundle])
        listener = open_socket(config.host, config.port)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    default = next(iter(split_names(configuration["model"])), None)
    content = configuration["recommend"]["content"]
    dataset = None if options.bundles else paths.dataset
    block = {} if dataset is None else configuration.parameters()["datasets"][dataset]
    try:
        serve(
            config,
            find,
            listener,
            paths=paths,
            dataset=dataset,
            default=default,
            content=content,
            index=configuration["recommend"]["index"],
            api_key=api_key,
            block=block,
        )
    except ValueError as error:
        log.debug("traceback", exc_info=error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_access(host: str, api_key: str | None) -> str | None:
    """Return the API key. Raises ConfigError without one for addresses that others reach, and for a short one."""
    from recpipe.serving.http.guard import is_loopback

    if not api_key and not is_loopback(host):
        raise ConfigError(
            f"serve.host is {host}, which others can reach, and there is no API key: set the environment variable "
            f"{KEY_VARIABLE}, or serve.host to 127.0.0.1"
        )
    if api_key and len(api_key) < MIN_KEY:
        raise ConfigError(f"{KEY_VARIABLE} has {len(api_key)} characters; a key has at least {MIN_KEY}")
    return api_key or None


def model_finder(
    bundles: list[str], paths: DataPaths, models: str, kinds: tuple[str, ...]
) -> Callable[[], dict[str, Path]]:
    """Return a function that finds folders of models by name. Raises ConfigError where there is nothing to serve."""
    find = partial(dict, named_folders(bundles)) if bundles else partial(model_folders, paths.models, models, kinds)
    if not (find() if bundles else model_folders(paths.models, ALL, kinds)):
        raise ConfigError(
            f"no model in {paths.models} has a bundle: train one with `kedro run --pipeline=train --params "
            f"dataset={paths.dataset},model=sasrec`, or choose another data set with --params dataset=…; "
            f"searched: {', '.join(kinds)} (serve.bundle)"
        )
    if absent := [] if bundles or models == ALL else sorted(set(split_names(models)) - find().keys()):
        raise ConfigError(
            f"serve.models names {', '.join(absent)}, of which {paths.models} has no bundle; there are bundles of "
            f"{', '.join(model_folders(paths.models, ALL, kinds))}"
        )
    return find


def model_folders(models: Path, names: str, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Find the models of a data set that have a bundle of the ``kinds``; ``names``: all, or several as a+b."""
    patterns = [f"seed_*/{kind}/*/{kind}" for kind in kinds]
    chosen = None if names == ALL else split_names(names)
    folders = [folder for folder in sorted(models.glob("*")) if chosen is None or folder.name in chosen]
    return {folder.name: folder for folder in folders if any(any(folder.glob(pattern)) for pattern in patterns)}


def named_folders(bundles: list[str]) -> dict[str, Path]:
    """Read ``name=folder`` and ``folder``, whose name is that of its bundle. Raises ConfigError."""
    from recpipe.serving.http.model_loader import read_description

    folders: dict[str, Path] = {}
    for text in bundles:
        name, separator, folder = text.rpartition("=")
        newest = newest_bundle(Path(folder))
        if not separator:
            name = read_description(newest)["name"]
        if name in folders:
            raise ConfigError(f"two bundles are called {name}: give one of them a name, as in second={folder}")
        folders[name] = Path(folder)
    return folders


def items_file(bundle: Path) -> Path | None:
    """Return the file of item columns of a bundle in a data folder, None for a bundle elsewhere."""
    folder = log_folder(bundle)
    return None if folder is None else folder / "items.parquet"


def beside(bundle: Path, model: str) -> Path:
    """Return the folder of another model of the same data set. Raises ConfigError for a bundle outside a run."""
    models = models_folder(bundle)
    if models is None:
        raise ConfigError(f"{bundle} is not in a data folder, so that recommend.content={model} cannot be found")
    return models / model


def open_socket(host: str, port: int) -> socket.socket:
    """Bind the address. Raises ConfigError where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be bound ({error.strerror}): choose another port, as --params serve.port=8001"
        ) from error
    return listener


def serve(
    config: ServeConfig,
    find: Callable[[], dict[str, Path]],
    listener: socket.socket,
    *,
    paths: DataPaths,
    dataset: str | None,
    default: str | None,
    content: str | None,
    index: Mapping[str, Any],
    api_key: str | None,
    block: Mapping[str, Any],
) -> None:
    """Run the service on a bound socket until a signal.

    ``dataset``: refuse bundles of another one; None: any. ``content``: the model that ranks new items. ``index``:
    settings of the index of large catalogues. ``block``: conf of the data set, which says where images of items are.
    """
    import torch
    import uvicorn

    from recpipe.serving.http.app import Service
    from recpipe.serving.http.guard import is_loopback
    from recpipe.serving.http.images import images_of_dataset
    from recpipe.serving.http.loaded_models import LoadedModels
    from recpipe.serving.http.metrics import Metrics
    from recpipe.serving.http.model_loader import ModelLoader
    from recpipe.serving.http.protocol import GracefulServer, protocol_class
    from recpipe.serving.item_index.build import IndexConfig

    metrics = Metrics()
    if config.threads:
        torch.set_num_threads(config.threads)
    loader = ModelLoader(
        config,
        metrics,
        dataset=dataset,
        items=items_file,
        content=lambda bundle: None if content is None else beside(bundle, content),
        index=build_config(IndexConfig, index, where="recommend.index"),
    )
    models = LoadedModels(
        find, loader.load, files=loader.files, kinds=BUNDLES[config.bundle], default=default, on_reload=metrics.reload
    )
    has_log = dataset is not None and (paths.primary / "interactions.parquet").is_file()
    users = paths.primary if config.users and has_log else None
    service = Service(
        models,
        metrics,
        config,
        api_key=api_key,
        local=is_loopback(config.host),
        users=users,
        images=images_of_dataset(block, paths),
    )
    settings = uvicorn.Config(
        service.app,
        http=protocol_class(client_timeout=config.client_timeout, connections=config.connections),
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(config.shutdown_timeout) or 1,
    )
    host, port = listener.getsockname()[:2]
    log.info("http://%s:%s serves %s; stop with Ctrl-C", host, port, ", ".join(find()))
    GracefulServer(settings).run(sockets=[listener])
    log.info("the service has stopped")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recpipe serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", metavar="[NAME=]FOLDER", help="by default all models of the data set")
    parser.add_argument(
        "--params", default="", metavar="KEY=VALUE,...", help="as in `kedro run`, such as serve.port=8001"
    )
    parser.add_argument("--env", default=None, help="environment over base; by default local")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="folder with base/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
