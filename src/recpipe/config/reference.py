"""Reference of all settings: the type, default and meaning of every key of the configuration.

Types and defaults come from the classes that check a block, meanings from the YAML comments in conf/base and from the
docstrings of the classes. ``python -m recpipe.config describe`` and the documentation show them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recpipe.config.checks import ConfigError, nearest
from recpipe.config.comments import file_comments
from recpipe.config.fields import field_meanings, fields, show
from recpipe.config.files import Leaf, Tree, leaves, read_parameters

NAME = "<name>"
SCHEMA = "recpipe.config.schema"
LOSSES = ("full_softmax", "sampled_softmax", "bce", "gbce", "bpr", "focal", "infonce", "amince")
LOSS_CLASSES = dict(
    zip(
        LOSSES,
        ("FullSoftmax", "SampledSoftmax", "BinaryCrossEntropy", "GBCE", "BPR", "Focal", "InfoNCE", "AMINCE"),
        strict=True,
    )
)
SHAPES = {"constant": "constant", "cosine": "cosine", "one_cycle": "one_cycle", "step": "stepwise", "plateau": "Plateau"}
QUANTIZERS = {
    "rqvae": "rqvae:RQVAEConfig",
    "residual_kmeans": "faiss_quantizers:ResidualKMeans.Config",
    "pq": "faiss_quantizers:PQ.Config",
    "opq": "faiss_quantizers:OPQ.Config",
}
READERS = ("files", "movielens", "amazon", "music4all", "numbered_lists", "online_retail", "steam")


@dataclass(frozen=True)
class Section:
    """A block of the conf: its dotted path, and the class or function whose fields are its keys.

    variant: the choice that the keys belong to, such as ``name: cosine``. skip: fields that the code sets.
    """

    path: str
    cls: str
    variant: str = ""
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A key: its type and default in words, and its meaning. ``file`` is empty for a key that no file of base has."""

    key: str
    type: str
    default: str
    meaning: str
    variant: str = ""
    file: str = ""


SECTIONS = (
    *(Section(path, f"{SCHEMA}:{cls}", skip=skip) for path, cls, skip in (
        ("datasets.<name>", "DatasetConfig", ()),
        ("datasets.<name>.content", "ContentConfig", ()),
        ("datasets.<name>.content.text", "TextContent", ()),
        ("datasets.<name>.content.text.tables", "ItemTable", ()),
        ("datasets.<name>.content.category", "Category", ()),
        ("embed", "EmbedConfig", ()),
        ("semantic_ids", "SemanticIdsConfig", ("kind", "quantizer_from", "quantizer_with")),
        ("semantic_ids.kinds.<name>.source", "IdSource", ()),
        ("evaluate", "EvaluateConfig", ("protocol",)),
        ("evaluate.content_slots", "ContentSlotsConfig", ()),
        ("report", "ReportConfig", ()),
        ("recommend", "RecommendConfig", ()),
        ("ensemble", "EnsembleConfig", ()),
        ("ties", "TiesConfig", ()),
        ("context", "ContextConfig", ()),
        ("studies.<name>", "StudyConfig", ("name",)),
        ("tune", "TuneConfig", ()),
        ("tune.pruner", "PrunerConfig", ()),
        ("geometry", "GeometryConfig", ()),
        ("register", "RegisterConfig", ()),
        ("serve", "ServeConfig", ()),
    )),
    Section("cold_users", "recpipe.config.run_config:ColdUsersConfig"),
    Section("side", "recpipe.layers.side:SideConfig"),
    Section("protocol", "recpipe.data.protocol:Protocol", skip=("dataset", "fingerprint", "steps")),
    Section("train", "recpipe.training.settings:TrainSettings"),
    Section("update", "recpipe.training.update_data:UpdateSettings"),
    Section("tune.search_space.<name>", "recpipe.training.tuning.space:Range"),
    Section("recommend.rules", "recpipe.serving.rules:Rules"),
    Section("recommend.rules.new_items", "recpipe.serving.rules:NewItems"),
    Section("recommend.index", "recpipe.serving.item_index.build:IndexConfig"),
    Section("evaluate.submission", "recpipe.evaluation.recommendations:SubmissionLayout"),
    Section("semantic_ids.gate", "recpipe.semantic_ids.gate:Gate"),
    *(Section("semantic_ids.quantizers.<name>", f"recpipe.semantic_ids.{cls}", f"type: {name}") for name, cls in QUANTIZERS.items()),
    Section("semantic_ids.quantizers.<name>.dead_codes", "recpipe.semantic_ids.rqvae:DeadCodes"),
    Section("semantic_ids.quantizers.<name>.collaborative", "recpipe.semantic_ids.collaborative:CollaborativeConfig"),
    Section("text_encoders.<name>", "recpipe.content.text_embeddings:TextEncoderConfig"),
    Section("text_encoders.<name>", "recpipe.content.tfidf:TfidfConfig", "kind: tfidf"),
    Section("text_encoders.<name>", "recpipe.content.embeddings:VectorFileConfig", "kind: file"),
    Section("image_encoders.<name>", "recpipe.content.image_embeddings:ImageEncoderConfig"),
    Section("image_encoders.<name>", "recpipe.content.embeddings:VectorFileConfig", "kind: file"),
    Section("datasets.<name>.content.image", "recpipe.content.image_sources:ImageSourceConfig"),
    *(Section("datasets.<name>.options", f"recpipe.data.readers.{name}:Options", f"source: {name}") for name in READERS),
    Section("datasets.<name>.options.items", "recpipe.data.readers.files:EntityOptions", "source: files"),
    *(Section("train.loss", f"recpipe.training.losses.{name}:{cls}", f"name: {name}", ("item_counts", "trained_items")) for name, cls in LOSS_CLASSES.items()),
    *(Section("train.schedule", f"recpipe.training.optimisers:{cls}", f"name: {name}", ("step", "steps", "epoch_steps")) for name, cls in SHAPES.items()),
)  # fmt: skip

# keys that code reads without a class: type, default where no file has one, and meaning where no comment has it
EXTRA: dict[str, tuple[str, str, str]] = {
    "dataset": ("text", "", ""),
    "model": ("text", "", ""),
    "baselines": ("list of texts", "", ""),
    "modality": ("text", "", ""),
    "seed": ("whole number from 0", "", ""),
    "seeds": ("text, list of whole numbers, or null", "", ""),
    "study": ("text", "", ""),
    "data": ("text", "", ""),
    "raw": ("text", "", ""),
    "init_from": ("text", "", ""),
    "quantizer_with": ("text", "", ""),
    "quantizer_from": ("text", "", ""),
    "accelerate": ("`auto` or `off`", "", ""),
    "requests": ("text or null", "", ""),
    "protocol.name": ("text or null", "", ""),
    "protocols.<name>": ("block", "", "Fields of `protocol` that the name stands for."),
    "profiles.<name>.about": ("text", "", "What kind of data set it is."),
    **{
        f"profiles.<name>.{name}": ("number", "none", f"{'Least' if 'min' in name else 'Upper limit of the'} {text}")
        for name, text in (
            ("min_events", "number of events of the log; a log with this number is inside."),
            ("max_events", "number of events of the log; a log with this number is outside."),
            ("min_events_per_user", "mean number of events of a user; a log with this number is inside."),
            ("max_events_per_user", "mean number of events of a user; a log with this number is outside."),
        )
    },
    "ingest.engine.name": ("`duckdb` or `spark`", "", "SQL engine."),
    "ingest.engine.memory_limit": ("text", "", ""),
    "ingest.engine.spill_folder": ("text or null", "", ""),
    "ingest.engine.threads": ("whole number from 1 or null", "", "Threads of the engine; null: all of the machine."),
    "ingest.engine.master": ("text", "`local[<threads>]`", "Address of the Spark cluster; Spark only."),
    "ingest.engine.settings": ("block", "{}", "The engine's own settings, such as `spark.sql.shuffle.partitions`."),
    "text_encoders.<name>.kind": (
        "`tfidf` or `file`",
        "none",
        "Without it the encoder is a pretrained model; tfidf: TF-IDF and SVD; file: ready vectors.",
    ),
    "image_encoders.<name>.kind": ("`file`", "none", "Without it the encoder is a pretrained model; file: ready vectors."),
    "semantic_ids.kinds.<name>": ("block", "", "Keys of `semantic_ids` with other values for this kind of ids."),
    "semantic_ids.quantizers.<name>.type": (
        "`rqvae`, `pqvae`, `residual_kmeans`, `pq` or `opq`",
        "",
        "The quantizer. `pqvae` has the keys of `rqvae`.",
    ),
    "train.loss.name": (", ".join(f"`{name}`" for name in LOSSES), "", "The loss."),
    "train.optimiser.name": (
        "`adafactor`, `adam`, `adamw`, `rmsprop` or `sgd`",
        "",
        "The optimiser of torch. Further keys are its arguments, such as `betas` and `weight_decay`.",
    ),
    "train.optimiser.learning_rate": ("number above 0", "", "The full learning rate, which the schedule multiplies."),
    "train.optimiser.decay_vectors": ("true or false", "true", "false exempts biases and norms from `weight_decay`."),
    "train.optimiser.fused": (
        "true or false",
        "true on a CPU for item tables of 8 million weights and more",
        "Update all weights in one pass; for adam, adamw and sgd. The last bits of the weights differ.",
    ),
    "train.schedule.name": (", ".join(f"`{name}`" for name in SHAPES), "", "The shape of the learning rate over steps."),
    "train.schedule.warmup_steps": ("whole number from 0", "0", "Steps of a linear rise before the shape begins."),
    **{
        f"datasets.<name>.{name}": ("block", "none", f"Keys of `{name}` with other values for this data set.")
        for name in ("cold_users", "embed", "semantic_ids", "train", "side", "evaluate", "recommend", "tune", "protocol")
    },
    "datasets.<name>.baselines": ("list of texts", "that of globals.yml", "Baselines of this data set."),
}  # fmt: skip

# settings of models that mean the same in every model, for classes that do not explain them
COMMON = {
    "alpha": "Weight of the penalties of the elastic net together.",
    "attention_dropout": "Dropout of attention weights.",
    "beam": "Width of the beam search: partial ids that are kept at every level.",
    "bias": "Whether linear layers and norms have biases.",
    "block": "Kind of the transformer blocks.",
    "buckets": "Buckets of relative positions, as in T5.",
    "decoder_layers": "Layers of the decoder.",
    "dim": "Width of embeddings and hidden states; for factor models the number of factors.",
    "dropout": "Dropout of embeddings and layers.",
    "epochs": "Passes over the training pairs.",
    "exponent": "Exponent of the popularity by which the matrix is scaled.",
    "factors": "Number of factors.",
    "feed_forward": "Width of the feed-forward layers; where it is small, in multiples of `dim`.",
    "head_dim": "Width of an attention head.",
    "heads": "Attention heads.",
    "l1_ratio": "Share of the L1 penalty in the elastic net.",
    "layers": "Layers of the network; of an encoder–decoder those of the encoder.",
    "learning_rate": "Learning rate.",
    "loss": "Loss of the factors.",
    "negatives": "Negatives drawn for each positive.",
    "qk_dim_factor": "Width of queries and keys relative to `dim`.",
    "search": "Search over the items: exact, or the approximate one of the paper.",
    "similarity": "Similarity of two rows.",
    "user_embeddings": "Whether users have embeddings of their own.",
}


class Reference:
    """All settings by key, with the defaults and comments of the folder ``conf``.

    ``<name>`` in a key stands for a free name, such as that of a data set. A key may have several variants.
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.tree = read_parameters(conf, "base")
        self.settings = [*self._extra(), *(item for section in SECTIONS for item in self._section(section))]

    def find(self, key: str) -> list[Setting]:
        """Return the variants of a key such as ``train.window``. Raises ConfigError with the nearest spelling."""
        if key.startswith("models."):
            key = ".".join(key.split(".")[2:])
        pattern = key.split(".")
        matches = [item for item in self.settings if _matches(item.key.split("."), pattern)]
        if not matches:
            keys = [item.key for item in self.settings]
            raise ConfigError(f"no setting is called {key!r}{nearest(key, keys)}; a block: describe {key}.<key>", key)
        exact = [item for item in matches if len(item.key.split(".")) == len(pattern)]
        return exact or matches

    def leaf(self, key: str) -> Leaf | None:
        """Return the value of a key in base, for ``<name>`` the first that has it; None without one."""
        return next(iter(_at(self.tree, key.split("."))), None)

    def comment(self, leaf: Leaf) -> str:
        """Return the comment of a value in its file, or that of the block that it is in on the same line."""
        return file_comments(self.conf.parent / leaf.file).get(leaf.key, "")

    def block_comment(self, key: str) -> str:
        """Return the comment of a block."""
        for path, leaf in leaves(self.tree):
            if path.startswith(f"{key}."):
                return file_comments(self.conf.parent / leaf.file).get(key, "")
        return ""

    def _extra(self) -> Iterator[Setting]:
        for key, (type_, default, meaning) in EXTRA.items():
            leaf = None if key.startswith("datasets.") else self.leaf(key)
            text = default if leaf is None or default else f"`{show(leaf.value)}`"
            comment = self.comment(leaf) if leaf is not None else ""
            yield Setting(key, type_, text, meaning or comment or self.block_comment(key), file=leaf.file if leaf else "")

    def _section(self, section: Section) -> Iterator[Setting]:
        cls = load(section.cls)
        meanings = field_meanings(cls)
        for name, (type_, default) in fields(cls).items():
            key = f"{section.path}.{name}"
            if name in section.skip or key in EXTRA:
                continue
            leaf = None if section.variant or section.path.startswith("datasets.") else self.leaf(key)
            leaf = leaf or (self._variant_leaf(section, name) if section.variant else None)
            has_value = leaf is not None and NAME not in key
            text = f"`{show(leaf.value)}`" if leaf is not None and has_value else default
            meaning = (self.comment(leaf) if leaf is not None else "") or self.block_comment(key)
            if not meaning or (section.variant and name in meanings):
                meaning = meanings.get(name, meaning)
            yield Setting(key, type_, text, meaning, section.variant, leaf.file if leaf is not None else "")

    def _variant_leaf(self, section: Section, name: str) -> Leaf | None:
        """Return a value of the key in the first block of base that chooses the variant."""
        choice, _, value = section.variant.partition(": ")
        parts = section.path.split(".")
        for block_ in _blocks(self.tree, parts):
            leaf, chosen = block_.get(name), block_.get(choice)
            if isinstance(leaf, Leaf) and isinstance(chosen, Leaf) and chosen.value == value:
                return leaf
        return None


def _matches(key: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a key, or its beginning, is the pattern; ``<name>`` in the key stands for anything."""
    return len(key) >= len(pattern) and all(a in (NAME, b) for a, b in zip(key, pattern, strict=False))


def _blocks(tree: Tree, path: Sequence[str]) -> Iterator[Tree]:
    if not path:
        yield tree
        return
    for name, entry in tree.items():
        if path[0] in (NAME, name) and isinstance(entry, dict):
            yield from _blocks(entry, path[1:])


def _at(tree: Tree, path: Sequence[str]) -> Iterator[Leaf]:
    for block_ in _blocks(tree, path[:-1]):
        if isinstance(leaf := block_.get(path[-1]), Leaf):
            yield leaf


def load(name: str) -> Any:
    """Import ``package.module:Class.Inner``."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value
