"""``python -m recpipe.reporting.results``: write docs/results and README's table from published rows and from runs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recpipe.config import ConfigError, Configuration, read_parameters
from recpipe.config.files import Tree, block, to_values
from recpipe.data.atomic import atomic_file
from recpipe.reporting.results.ours import STORE, ResultsStoreError, collect, merge, read_store, write_store
from recpipe.reporting.results.pages import GENERATED, dataset_page, index_page
from recpipe.reporting.results.published import FOLDER, read_not_built, read_published
from recpipe.reporting.results.readme_table import update_readme
from recpipe.reporting.results.sections import sections

log = logging.getLogger(__name__)

INDEX = "index.md"


def write_results(
    folder: Path,
    protocols: Mapping[str, Mapping[str, Any]],
    *,
    data: Iterable[Path] = (),
    datasets: Sequence[str] = (),
    titles: Mapping[str, str] | None = None,
    readme: Path | None = None,
) -> list[str]:
    """Merge the runs below the folders ``data`` into the store, and write all pages in ``folder``.

    protocols: for every data set its named protocols and their fields. datasets: those whose runs are read, by default
    all. titles: of data sets without published results. readme: file whose results table is replaced. Returns messages
    about runs that cannot be used. Raises ConfigError, ResultsStoreError and ReadmeError before anything is written.
    """
    published, not_built, stored = read_published(folder), read_not_built(folder), read_store(folder / STORE)
    if unknown := sorted(set(published) - set(protocols)):
        raise ConfigError(f"{folder} has results of {', '.join(unknown)}, which are no data sets; rename the files")
    if unknown := sorted(set(datasets) - set(protocols)):
        raise ConfigError(f"{', '.join(unknown)}: no such data set; there are {', '.join(sorted(protocols))}")
    problems: list[str] = []
    for root in data:
        names = sorted(path.name for path in (root / "08_reporting").glob("*") if path.is_dir())
        if missing := sorted(set(datasets) - set(names)) or ([] if names else ["any data set"]):
            problems.append(
                f"{root / '08_reporting'} has no runs of {', '.join(missing)}: --data names the folder of runs"
            )
        for name in names:
            if name in (datasets or names):
                rows, messages = collect(root, name, stored)
                stored = merge(stored, rows)
                problems += messages
    ours = {name: [row for row in stored.values() if row.dataset == name] for name in protocols}
    shown = [name for name in protocols if name in published or ours[name]]
    parts = {}
    for name in shown:
        try:
            parts[name] = published.get(name), sections(published.get(name), ours[name], protocols[name])
        except ValueError as error:
            raise ConfigError(f"{folder / FOLDER / name}.yml: {error}") from error
    all_titles = {**(titles or {}), **{name: results.title for name, results in published.items()}}
    files = {INDEX: index_page(parts, not_built, all_titles)}
    for name in shown:
        page = dataset_page(name, *parts[name], title=all_titles.get(name, name))
        files |= {f"{name}.md": page.text, **page.pictures}
    readme_text = readme and update_readme(readme.read_text(encoding="utf-8"), stored.values(), titles or {})
    write_store(folder / STORE, stored)
    _write(folder, files)
    _remove_others(folder, files)
    if readme and readme_text:
        _write(readme.parent, {readme.name: readme_text})
    return problems


def named_protocols(conf: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the protocols of every data set of a conf folder, with their fields."""
    files = read_parameters(conf, None)
    result = {}
    for dataset in block(files, "datasets"):
        names = Configuration(files, {"dataset": dataset}).protocols.names
        result[dataset] = {name: _fields(files, dataset, name) for name in names}
    return result


def dataset_titles(conf: Path) -> dict[str, str]:
    """Read the titles of the data sets of a conf folder; the name of one without a title."""
    datasets = to_values(block(read_parameters(conf, None), "datasets"))
    return {name: str(values.get("title", name)) for name, values in datasets.items()}


def _fields(files: Tree, dataset: str, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = Configuration(files, {"dataset": dataset, "protocol": name})["protocol"]
    return fields


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files."""
    for name, text in files.items():
        with atomic_file(folder / name, digest=False) as path:
            path.write_text(text, encoding="utf-8")


def _remove_others(folder: Path, files: Iterable[str]) -> None:
    """Remove older pages and pictures that are not among ``files``."""
    for path in (*folder.glob("*.svg"), *folder.glob("*.md")):
        if path.name not in files and (path.suffix == ".svg" or GENERATED in path.read_text(encoding="utf-8")):
            path.unlink()


def main() -> None:
    """Parse the command line and write the pages."""
    parser = argparse.ArgumentParser(
        description="Write docs/results, published results and ours by protocol, and README's table."
    )
    parser.add_argument("datasets", nargs="*", help="data sets whose runs are read; default all")
    parser.add_argument("--data", type=Path, action="append", help="folder of runs, default data; may be repeated")
    parser.add_argument("--conf", type=Path, default=Path("conf"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the results table")
    args = parser.parse_args()
    if not args.readme.is_file():
        parser.error(f"there is no {args.readme} for the results table: name it with --readme")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        roots = args.data or [Path("data")]
        problems = write_results(
            args.results,
            named_protocols(args.conf),
            data=roots,
            datasets=args.datasets,
            titles=dataset_titles(args.conf),
            readme=args.readme,
        )
    except (ConfigError, ResultsStoreError, ValueError) as error:
        parser.error(str(error))
    for problem in problems:
        log.warning("%s", problem)
    log.info("%s: %d files", args.results, len(list(args.results.glob("*.*"))))


if __name__ == "__main__":
    main()
