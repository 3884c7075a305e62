"""Pages of the models: one per conf name, from docstring, conf and results; and the index."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from docs.generators.configuration import CONF, PARAMETERS, ROOT, sentence

from recpipe.config import Configuration, split_names
from recpipe.config.comments import file_comments, head_comment
from recpipe.config.fields import field_meanings, fields, show
from recpipe.config.files import Leaf, block, to_tree
from recpipe.config.reference_sections import COMMON
from recpipe.config.run_config import RunConfig
from recpipe.models.generator import Generator
from recpipe.models.parallel_codes import ParallelCodes
from recpipe.models.recommender import Recommender
from recpipe.models.registry import model_class, model_info
from recpipe.reporting.formatting import duration
from recpipe.reporting.results.ours import STORE, OurRow, Value, read_store

RESULTS = ROOT / "docs/results"
WHEN = "When to use: "
COMPETITION = ("transformer", "transformer_generative", "siglip_oneshot", "with_decay", "all_data")
FAMILIES = {
    "Classical models": "They have no network. Most are trained in seconds, on a CPU.",
    "Sequential models": "Networks that read the events of a history in their order.",
    "Generative models": "They know items by their content or their semantic ids, and write or score these.",
    "Steps of a competition entry": "The five steps of nanoGPT-recommender, a published entry on Kaggle.",
}
CLASSICAL, SEQUENTIAL, GENERATIVE, STEPS = FAMILIES
YEAR = re.compile(r"\b(?:19|20)\d\d\b(?!\.\d)")  # not the beginning of an arXiv number
DECISION = re.compile(r"\bdecision (\d+)\b")
VARIANT = "---\nsearch:\n  boost: 1\n---\n\n"  # found below the model that it is a variant of
LIST_OF_SETS = "setrec"  # a type that generates sets of tokens and no semantic ids


@dataclass(frozen=True)
class ModelPage:
    """One conf name: its file, class and settings on no particular data set, and its rows of the results."""

    name: str
    text: str
    run: RunConfig
    parents: tuple[str, ...]
    variants: tuple[str, ...]
    rows: tuple[OurRow, ...]

    @property
    def file(self) -> str:
        """Path of its conf file, from the repository's root."""
        return f"{PARAMETERS}/models/{self.name}.yml"

    @cached_property
    def cls(self) -> type[Recommender]:
        """Class of its code."""
        return model_class(self.run.type)

    @cached_property
    def paragraphs(self) -> list[str]:
        """Paragraphs of the docstring of the module, without that of the shapes."""
        text = (inspect.getdoc(inspect.getmodule(self.cls)) or "").replace("``", "`")
        return [part for part in text.split("\n\n") if not part.startswith("Shapes:")]

    @property
    def is_variant(self) -> bool:
        """Whether another conf name is the main one of the code."""
        return self.name != self.run.type and (CONF / f"base/parameters/models/{self.run.type}.yml").is_file()

    @property
    def what(self) -> str:
        """What the model is: the docstring's first line, of a variant the head of its file."""
        head, _, _ = head_comment(self.text).partition(WHEN)
        if (self.is_variant or self.name in (*COMPETITION, "text_knn", "siglip_knn")) and head.strip():
            return sentence(" ".join(head.split()))
        first = self.paragraphs[0].partition(": ")[2] or self.paragraphs[0]
        return sentence(" ".join(first.split()))

    @property
    def when(self) -> str:
        """The text behind ``# When to use:`` at the top of the file, empty without one."""
        return sentence(" ".join(head_comment(self.text).partition(WHEN)[2].split()))

    @property
    def family(self) -> str:
        """Title of the group that it is listed in."""
        if self.name in COMPETITION:
            return STEPS
        if self.cls.reads_ids or self.run.type == LIST_OF_SETS or issubclass(self.cls, Generator | ParallelCodes):
            return GENERATIVE
        return CLASSICAL if self.cls.closed_form else SEQUENTIAL

    @property
    def year(self) -> str:
        """Year of the paper that its docstring names, or ``none``."""
        head = head_comment(self.text).partition(WHEN)[0]
        sources = [head if self.is_variant else "", *(p for p in self.paragraphs if p.startswith(("Paper", "Source")))]
        years = [YEAR.findall(text)[0] for text in sources if YEAR.search(text)]
        return years[0] if years else "none"

    @property
    def reads(self) -> str:
        """What the model reads besides the events."""
        parts = (
            [f"semantic ids ({self.run.ids[0]})" if len(self.run.ids) == 1 else "semantic ids"] if self.run.ids else []
        )
        kinds = split_names(self.run.side.get("vectors"))
        parts += [
            f"{kind} vectors" if kind != "collaborative" else f"items of {self.run.collaborative}" for kind in kinds
        ]
        if self.run.settings.get("time_mode", "none") != "none":
            parts.append("times")
        return ", ".join(["events", *parts])

    @property
    def training(self) -> str:
        """How it is trained, in a few words."""
        if self.run.type in ("content_knn", "hop_graph", "popular"):
            return "nothing to learn"
        return "by gradient" if not self.cls.closed_form else "own solver"


def pages() -> dict[str, str]:
    """Return the pages by path below ``docs``."""
    models = model_pages()
    return {"models/index.md": index(models)} | {f"models/{page.name}.md": page_text(page) for page in models}


def model_pages() -> list[ModelPage]:
    """Read all models of conf/base, with the results in docs/results."""
    configuration = Configuration.read(CONF, "base", {}, model_info)
    configuration = dataclasses.replace(configuration, files=without_datasets(configuration))
    rows = list(read_store(RESULTS / STORE).values())
    result = []
    for name in configuration.model_names:
        entry = block(configuration.files, "models", name)
        parent = entry.get("extends")
        result.append(
            ModelPage(
                name,
                (CONF / f"base/parameters/models/{name}.yml").read_text(encoding="utf-8"),
                configuration.run(name),
                (str(parent.value),) if isinstance(parent, Leaf) else (),
                tuple(_extending(configuration, name)),
                tuple(row for row in rows if row.model == name),
            )
        )
    return result


def without_datasets(configuration: Configuration) -> Any:
    """Return the files with one data set, which overrides nothing: values of models are those of any data set."""
    files = dict(configuration.files)
    files["datasets"] = to_tree({"any": {"source": "files"}}, "")
    files["dataset"] = Leaf("any", "", "dataset")
    files["models"] = {
        name: {key: value for key, value in entry.items() if key not in ("datasets", "profiles")}
        for name, entry in block(files, "models").items()
        if isinstance(entry, dict)
    }
    return files


def _extending(configuration: Configuration, name: str) -> Iterator[str]:
    for other in configuration.model_names:
        leaf = block(configuration.files, "models", other).get("extends")
        if isinstance(leaf, Leaf) and leaf.value == name:
            yield other


def index(models: Sequence[ModelPage]) -> str:
    """Return the index of the models, a table per family."""
    lines = [
        "# Models\n",
        "A model is a conf file and a file of code; `--params model=<name>` selects it. A variant is a conf file with "
        "the lines in which it differs. `model=sasrec+item_knn` runs several, `model=all` all.\n",
        "All networks share one trainer, eight losses, five optimisers and five schedules, by conf: see "
        "[Training](../configuration/train.md). Most of them read [side information](../configuration/side.md). Users "
        "without history get a fallback by popularity. To add a model: [tutorial](../tutorials/extending.md).\n",
    ]
    for family, about in FAMILIES.items():
        lines += [f"## {family}\n", f"{about}\n", "| model | what | year | reads | training |", "|---|---|---|---|---|"]
        members = [page for page in models if page.family == family]
        for page in members:
            what = re.split(r"(?<=\w\.) ", page.what)[0].replace("|", "\\|")
            lines.append(f"| [{page.name}]({page.name}.md) | {what} | {page.year} | {page.reads} | {page.training} |")
        lines += ["", "When to use which:\n"]
        lines += [f"- [`{page.name}`]({page.name}.md): {page.when[0].lower()}{page.when[1:]}" for page in members]
        lines.append("")
    return "\n".join(lines)


def page_text(page: ModelPage) -> str:
    """Return the page of a model."""
    head = VARIANT if page.is_variant else ""
    lines = [f"{head}# {page.name}\n", f"{page.what}\n", f"**When to use:** {page.when[0].lower()}{page.when[1:]}\n"]
    lines += [*_facts(page), "", "## Run { data-search-exclude }\n", *_run(page), "## Measured\n", *_measured(page)]
    lines += ["## Paper and differences\n", *_paper(page), "## Settings\n", *_settings(page)]
    return _with_decisions("\n".join(lines))


def _with_decisions(text: str) -> str:
    """Link ``decision 30`` outside of code."""
    paths = {int(path.name[:4]): path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md")}

    def link(match: re.Match[str]) -> str:
        name = paths.get(int(match[1]))
        return f"[{match[0]}](../decisions/{name})" if name else match[0]

    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else DECISION.sub(link, part) for part in parts)


def _facts(page: ModelPage) -> Iterator[str]:
    module = f"src/recpipe/models/{page.run.type}.py"
    yield f"- Family: {page.family[0].lower()}{page.family[1:]}"
    yield f"- Reads: {page.reads}"
    yield f"- Training: {page.training}"
    yield f"- Files: [`{page.run.type}.py`](../../{module}), [`{page.name}.yml`](../../{page.file})"
    if page.parents:
        yield f"- Starts from: {_links(page.parents)}, whose settings it takes"
    if page.cls.takes_side and not page.cls.required_side:
        yield "- [Side information](../configuration/side.md): read where it is configured"
    if page.variants:
        yield f"- Variants: {_links(page.variants)}"


def _links(names: Sequence[str]) -> str:
    return ", ".join(f"[`{name}`]({name}.md)" for name in names)


def _run(page: ModelPage) -> Iterator[str]:
    lines = []
    if page.run.item_model:
        lines.append(f"kedro run --pipelines={page.run.item_model}")
    time = page.run.settings.get("time_mode", "none")
    params = f" --params protocol.time={time}" if time != "none" else ""
    yield "\n".join(["```bash", *lines, f"kedro run --pipelines={page.name}{params}", "```\n"])
    yield (
        "This is the whole path of the model, from the raw log to the report, on the data set of "
        "`conf/base/globals.yml`. `--params dataset=<name>` takes another one, "
        f"`--pipelines=train,evaluate --params model={page.name}` does a part.\n"
    )
    if "image" in page.reads:
        yield "The data set needs item images: a block `content: {image: ...}`. The bundled shop log has none.\n"


def _measured(page: ModelPage) -> Iterator[str]:
    if not page.rows:
        yield (
            "Not measured yet under a protocol of the [results pages](../results/index.md). "
            "[Experiments](../experiments/index.md) may have older numbers.\n"
        )
        return
    yield "Test fold, all items ranked; in brackets the 95 % interval over users. The data set leads to all models.\n"
    yield "| data set | protocol | NDCG@10 | Recall@10 | training | hardware | commit |"
    yield "|---|---|---:|---:|---:|---|---|"
    for row in sorted(page.rows, key=lambda row: (row.dataset, str(row.protocol.get("name")), row.finished)):
        protocol = row.protocol.get("name") or f"like {row.protocol['split']}, id {row.protocol['id']}"
        dataset = (
            f"[{row.dataset}](../results/{row.dataset}.md)"
            if (RESULTS / f"{row.dataset}.md").is_file()
            else row.dataset
        )
        yield (
            f"| {dataset} | {protocol} | {_value(row.metrics, 'ndcg@10')} | {_value(row.metrics, 'recall@10')} | "
            f"{duration(row.train_seconds)} | {row.hardware or 'unknown'} | {row.commit or 'unknown'} |"
        )
    yield ""


def _value(metrics: Mapping[str, Value], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return "none"
    text = _four(value.mean)
    return text if value.low is None or value.high is None else f"{text} [{_four(value.low)}, {_four(value.high)}]"


def _four(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _paper(page: ModelPage) -> Iterator[str]:
    if page.is_variant:
        yield f"The code is that of [`{page.run.type}`]({page.run.type}.md).\n"
    for paragraph in page.paragraphs[1:]:
        yield f"{paragraph}\n"


def _settings(page: ModelPage) -> Iterator[str]:
    config, meanings = page.cls.Config, field_meanings(page.cls.Config)
    comments = file_comments(CONF / f"base/parameters/models/{page.name}.yml")
    own = fields(config)
    if own:
        yield f"Settings of the model, as `--params models.{page.name}.<setting>=<value>`, with their values here.\n"
    for name, (type_, default) in own.items():
        value = f"`{show(page.run.settings[name])}`" if name in page.run.settings else default
        parts = [f"{type_}."]
        parts.append(sentence(meanings.get(name, "") or COMMON.get(name, "")))
        if comment := comments.get(f"models.{page.name}.{name}"):
            parts.append(f"In the conf: {sentence(comment, capital=False)}")
        yield f"`{name}` = {value}\n:   {' '.join(filter(None, parts))}\n"
    yield "### The file { data-search-exclude }\n"
    yield _about_file(page)
    yield f"```yaml\n{page.text.rstrip()}\n```\n"


def _about_file(page: ModelPage) -> str:
    names = ("train", "side", "search_space", "profiles", "datasets")
    shared = [name for name in names if re.search(rf"^    {name}:", page.text, re.MULTILINE)]
    texts = {
        "train": "`train` and `side` override the [common blocks](../configuration/train.md)",
        "search_space": "`search_space` is for [tuning](../tutorials/tuning.md)",
        "profiles": "`profiles` and `datasets` have the values for kinds of data sets and for single ones",
    }
    parts = [text for name, text in texts.items() if name in shared or (name == "profiles" and "datasets" in shared)]
    first = f"What is not in it comes from [`{page.parents[0]}`]({page.parents[0]}.md). " if page.parents else ""
    return f"{first}{'. '.join(parts)}. Comments say where values come from.\n" if parts else f"{first}\n"
