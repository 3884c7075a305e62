"""Pages of the configuration: every key with its type, default and meaning, by block."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from recpipe.config.fields import show
from recpipe.config.reference import Reference, Setting
from recpipe.config.reference_sections import EXTRA, LOSSES
from recpipe.data.sampling import STEPS
from recpipe.training.losses import loss_class

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PARAMETERS = "conf/base/parameters"
VALUE = re.compile(
    r"^(?:none,|auto,|[a-z_0-9+]+(?: \(|:|,? or [a-z_0-9]+(?:[;:,.(]|$)|, [a-z_0-9]+(?:,| or|:|;| \()))"
)  # a meaning that begins with an allowed value


@dataclass(frozen=True)
class PageOfSettings:
    """A page: its title, the text below it, files in conf/base, and the blocks that it shows, in order."""

    title: str
    about: str
    files: tuple[str, ...]
    blocks: tuple[str, ...]


PAGES = {
    "run": PageOfSettings(
        "Run",
        "What a command works on: the data set, the models, the seed, and the folders.",
        ("conf/base/globals.yml", f"{PARAMETERS}/run.yml", f"{PARAMETERS}/seeds.yml", f"{PARAMETERS}/accelerate.yml"),
        ("",),
    ),
    "datasets": PageOfSettings(
        "Data sets and readers",
        "A data set is one file in `conf/base/parameters/datasets/` or `conf/local/parameters/datasets/`. "
        "`my_log.yml` is a template for your own log; [Your own log](../tutorials/own-log.md) goes through it. "
        "`<name>` is the name of the data set.",
        (f"{PARAMETERS}/datasets/my_log.yml", f"{PARAMETERS}/profiles.yml"),
        ("datasets.<name>", "datasets.<name>.options", "datasets.<name>.options.items", "steps",
         "datasets.<name>.content", "datasets.<name>.content.text", "datasets.<name>.content.text.tables",
         "datasets.<name>.content.image", "datasets.<name>.content.category", "profiles.<name>"),
    ),
    "protocol": PageOfSettings(
        "Protocol",
        "The rules of the split and of the evaluation. [Protocols and metrics](../protocols.md) explains them. "
        "A named protocol is a block of `protocols` with the fields that define it; a data set lists the names that it "
        "is used under.",
        (f"{PARAMETERS}/protocol.yml", f"{PARAMETERS}/protocols.yml"),
        ("protocol", "protocols"),
    ),
    "ingest": PageOfSettings(
        "Ingest",
        "The SQL engine that reads and samples the raw log. `--env spark` uses Spark, with equal results.",
        (f"{PARAMETERS}/ingest.yml",),
        ("ingest.engine",),
    ),
    "embed": PageOfSettings(
        "Embeddings",
        "Encoders of item texts and images. The data set's block `content` names the texts and images.",
        (f"{PARAMETERS}/embed.yml",),
        ("embed", "text_encoders.<name>", "image_encoders.<name>"),
    ),
    "semantic-ids": PageOfSettings(
        "Semantic ids",
        "How the codes of items are made from vectors. [Semantic ids](../tutorials/semantic-ids.md) is a tutorial.",
        (f"{PARAMETERS}/semantic_ids.yml",),
        ("semantic_ids", "semantic_ids.quantizers.<name>", "semantic_ids.quantizers.<name>.dead_codes",
         "semantic_ids.quantizers.<name>.collaborative", "semantic_ids.kinds", "semantic_ids.kinds.<name>.source",
         "semantic_ids.gate"),
    ),
    "train": PageOfSettings(
        "Training",
        "Training of models that learn by gradient. A data set and a model override this block key by key. A loss, "
        "optimiser or schedule with another `name` replaces the whole block below it.",
        (f"{PARAMETERS}/train.yml",),
        ("train", "train.loss", "train.optimiser", "train.schedule"),
    ),
    "side": PageOfSettings(
        "Side information and cold start",
        "What models read besides item ids, and what users without history get. "
        "[Side information](../tutorials/side-information.md) is a tutorial.",
        (f"{PARAMETERS}/side.yml", f"{PARAMETERS}/cold_users.yml"),
        ("side", "cold_users"),
    ),
    "evaluate": PageOfSettings(
        "Evaluation, report and studies",
        "What is measured of a trained model, and what the report shows.",
        tuple(f"{PARAMETERS}/{name}.yml" for name in ("evaluate", "report", "ensemble", "ties", "studies", "geometry")),
        ("evaluate", "evaluate.content_slots", "evaluate.submission", "report", "ensemble", "ties", "context",
         "studies.<name>", "geometry"),
    ),
    "tune": PageOfSettings(
        "Tuning",
        "Search for better settings. [Tuning](../tutorials/tuning.md) is a tutorial.",
        (f"{PARAMETERS}/tune.yml",),
        ("tune", "tune.pruner", "tune.search_space.<name>"),
    ),
    "use": PageOfSettings(
        "Use: lists, service, updates",
        "Settings of the pipelines `recommend`, `update` and `register`, and of the HTTP service. "
        "[Serving](../tutorials/serving.md) is a tutorial.",
        tuple(f"{PARAMETERS}/{name}.yml" for name in ("recommend", "serve", "update", "register")),
        ("recommend", "recommend.rules", "recommend.rules.new_items", "recommend.index", "serve", "update", "register"),
    ),
}  # fmt: skip
TITLES = {
    "steps": "Steps of cleaning and sampling",
    "datasets.<name>.options.items": "Options of an items or users file",
    "tune.search_space.<name>": "Ranges of the search space",
}

ABOUT = {
    "train": "",  # stands at the top of the page
    "train.loss": "`loss: {name: bce, negatives: {uniform: 1}}`: the name and its arguments, below by name.",
    "train.optimiser": "`optimiser: {name: adamw, learning_rate: 1.0e-3, weight_decay: 0.1}`.",
    "train.schedule": "`schedule: {name: cosine, warmup_steps: 100}`: the name and its arguments, below by name.",
    "recommend": "Lists for many users, by default for every user of the log after all his events.",
    "semantic_ids.quantizers.<name>": "A block per quantizer; `semantic_ids.quantizer` names the one that is used.",
    "text_encoders.<name>": "A block per encoder; `embed.text` names the used one. Add your own in `conf/local`.",
    "image_encoders.<name>": "A block per encoder; `embed.image` names the one that is used.",
    "profiles.<name>": "Kinds of data sets by size and density. Models have their own values per profile.",
    "protocol": "",
    "embed": "",
}


def pages() -> dict[str, str]:
    """Return the pages by path below ``docs``; ``configuration/index.md`` is written by hand."""
    reference = Reference(CONF)
    return {f"configuration/{name}.md": page_text(page, reference) for name, page in PAGES.items()}


def page_text(page: PageOfSettings, reference: Reference) -> str:
    """Return the Markdown of a page."""
    links = ", ".join(f"[{file.removeprefix('conf/base/')}](../../{file})" for file in page.files)
    files = "file" if len(page.files) == 1 else "files"
    lines = [f"# {page.title}\n", f"{page.about}\n", f"Defaults: {files} {links} in `conf/base`.\n"]
    for block in page.blocks:
        lines += _steps() if block == "steps" else _block(block, reference)
    return "\n".join(lines)


def block_settings(block: str, reference: Reference) -> list[Setting]:
    """Return the settings directly in a block, the top level for an empty name."""
    at_top = [setting for setting in reference.settings if "." not in setting.key]
    if not block:
        return [setting for setting in at_top if setting.key != "requests"]
    inside = [setting for setting in reference.settings if setting.key.rpartition(".")[0] == block]
    if block == "datasets.<name>":  # its own keys before those that override other blocks
        inside.sort(key=lambda setting: setting.key in EXTRA)
    return [*([setting for setting in at_top if setting.key == "requests"] if block == "recommend" else []), *inside]


def _block(block: str, reference: Reference) -> Iterator[str]:
    if block:
        yield f"## {TITLES.get(block, f'`{block}`')}\n"
    comment = ABOUT.get(block, reference.block_comment(block)) if block else ""
    if comment:
        yield f"{sentence(comment)}\n"
    settings = block_settings(block, reference)
    shown = {block for page in PAGES.values() for block in page.blocks}
    common = [setting for setting in settings if not setting.variant and setting.key not in shown]
    for setting in common:
        yield _entry(setting, setting.key)
    for variant in dict.fromkeys(setting.variant for setting in settings if setting.variant):
        of_variant = [setting for setting in settings if setting.variant == variant]
        yield f"### `{variant}`\n"
        if block == "train.loss":
            yield f"{_loss(variant.partition(': ')[2])}\n"
        for setting in of_variant:
            yield _entry(setting, f"{setting.key}-{variant.partition(': ')[2]}")
    if block == "train.loss":
        unused = [name for name in LOSSES if not any(setting.variant == f"name: {name}" for setting in settings)]
        for name in unused:
            yield f"### `name: {name}`\n\n{_loss(name)}\n"


def _loss(name: str) -> str:
    return sentence((loss_class(name).__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`"))


def _entry(setting: Setting, anchor: str) -> str:
    default = f", default {setting.default}" if setting.default else ""
    type_ = f"{setting.type}{default}\n{{ .setting-type }}"
    return f"{heading(setting.key, anchor)}\n\n{type_}\n\n{sentence(setting.meaning)}\n"


def heading(text: str, anchor: str) -> str:
    """Return the heading of a setting in raw HTML: the search finds it, and the table of contents leaves it out."""
    anchor = re.sub(r"[<>]", "", anchor)
    link = f'<a class="headerlink" href="#{anchor}" title="Permanent link">&para;</a>'
    return f'<h4 id="{anchor}" class="setting"><code>{escape(text)}</code>{link}</h4>'


def _steps() -> Iterator[str]:
    yield f"## {TITLES['steps']}\n"
    yield (
        "`steps` of a data set is a list of steps, done in order, each with its name and arguments: "
        "`{step: k_core, users: 5, items: 5}`.\n"
    )
    for name, step in STEPS.items():
        parameters = [p for p in inspect.signature(step).parameters.values() if p.name != "log"]
        arguments = [p.name if p.default is p.empty else f"{p.name} ({_default(p.default)})" for p in parameters]
        about = inspect.cleandoc(step.__doc__ or "").split("\n\n")
        text = " ".join(about[:2]).replace("\n", " ").replace("``", "`").partition(" Raises ")[0]
        names = ", ".join(f"`{argument}`" for argument in arguments)
        yield f"{heading(name, f'step-{name}')}\n\nArguments: {names}\n{{ .setting-type }}\n"
        yield f"{text}\n"


def _default(value: object) -> str:
    return f"default {show(value)}"


def sentence(text: str, *, capital: bool = True) -> str:
    """Return a comment as Markdown: a sentence, with names in angle brackets and keys as code."""
    text = text.strip()
    is_name = re.match(r"\S*(?:[A-Z_/]|\w\.\w)", text) is not None
    if capital and text and not is_name and not VALUE.match(text):
        text = text[0].upper() + text[1:]
    parts = re.split(r"(`[^`]*`)", text)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})", r"`\1`", parts[number])
        parts[number] = re.sub(r"(?<!`)((?:[\w./:-]*<[a-z ]+>)+(?:[\w./:@-]*\w)?)", r"`\1`", parts[number])
        parts[number] = re.sub(r"(?<![`\w])([*_])", r"\\\1", parts[number])
    text = "".join(parts)
    return text if not text or text[-1] in ".:;?" else f"{text}."
