"""Classes of all blocks of the conf by path, and keys that have no class: the tables behind ``reference``.

Classes are named as text, ``package.module:Class``: they lie in packages above this one, and ``reference`` loads them.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = "recpipe.config.schema"
OF_SCHEMA = {
    "datasets.<name>": "DatasetConfig",
    "datasets.<name>.content": "ContentConfig",
    "datasets.<name>.content.text": "TextContent",
    "datasets.<name>.content.text.tables": "ItemTable",
    "datasets.<name>.content.category": "Category",
    "embed": "EmbedConfig",
    "semantic_ids": "SemanticIdsConfig",
    "semantic_ids.kinds.<name>.source": "IdSource",
    "evaluate": "EvaluateConfig",
    "evaluate.content_slots": "ContentSlotsConfig",
    "report": "ReportConfig",
    "recommend": "RecommendConfig",
    "ensemble": "EnsembleConfig",
    "ties": "TiesConfig",
    "context": "ContextConfig",
    "studies.<name>": "StudyConfig",
    "tune": "TuneConfig",
    "tune.pruner": "PrunerConfig",
    "geometry": "GeometryConfig",
    "register": "RegisterConfig",
    "serve": "ServeConfig",
}
OF_PACKAGES = {
    "cold_users": "config.run_config:ColdUsersConfig",
    "side": "layers.side:SideConfig",
    "protocol": "data.protocol:Protocol",
    "train": "training.settings:TrainSettings",
    "update": "training.update_data:UpdateSettings",
    "tune.search_space.<name>": "training.tuning.space:Range",
    "recommend.rules": "serving.rules:Rules",
    "recommend.rules.new_items": "serving.rules:NewItems",
    "recommend.index": "serving.item_index.build:IndexConfig",
    "evaluate.submission": "evaluation.recommendations:SubmissionLayout",
    "semantic_ids.gate": "semantic_ids.gate:Gate",
    "semantic_ids.quantizers.<name>.dead_codes": "semantic_ids.rqvae:DeadCodes",
    "semantic_ids.quantizers.<name>.collaborative": "semantic_ids.collaborative:CollaborativeConfig",
    "text_encoders.<name>": "content.text_embeddings:TextEncoderConfig",
    "image_encoders.<name>": "content.image_embeddings:ImageEncoderConfig",
    "datasets.<name>.content.image": "content.image_sources:ImageSourceConfig",
}
# fields that the code sets
INTERNAL = {
    "semantic_ids": ("kind", "quantizer_from", "quantizer_with", "source"),
    "evaluate": ("protocol",),
    "studies.<name>": ("name",),
    "protocol": ("dataset", "fingerprint", "steps"),
    "train.loss": ("item_counts", "trained_items"),
    "train.schedule": ("step", "steps", "epoch_steps"),
}
LOSSES = {
    "full_softmax": "FullSoftmax",
    "sampled_softmax": "SampledSoftmax",
    "bce": "BinaryCrossEntropy",
    "gbce": "GBCE",
    "bpr": "BPR",
    "focal": "Focal",
    "infonce": "InfoNCE",
    "amince": "AMINCE",
}
SHAPES = {
    "constant": "constant",
    "cosine": "cosine",
    "one_cycle": "one_cycle",
    "step": "stepwise",
    "plateau": "Plateau",
}
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

    variant: the choice that the keys belong to, such as ``name: cosine``.
    """

    path: str
    cls: str
    variant: str = ""


def _variants(path: str, key: str, classes: dict[str, str]) -> list[Section]:
    return [Section(path, f"recpipe.{cls}", f"{key}: {name}") for name, cls in classes.items()]


SECTIONS = (
    *(Section(path, f"{SCHEMA}:{cls}") for path, cls in OF_SCHEMA.items()),
    *(Section(path, f"recpipe.{cls}") for path, cls in OF_PACKAGES.items()),
    *_variants("train.loss", "name", {name: f"training.losses.{name}:{cls}" for name, cls in LOSSES.items()}),
    *_variants("train.schedule", "name", {name: f"training.optimisers:{cls}" for name, cls in SHAPES.items()}),
    *_variants(
        "semantic_ids.quantizers.<name>", "type", {name: f"semantic_ids.{cls}" for name, cls in QUANTIZERS.items()}
    ),
    *_variants(
        "text_encoders.<name>",
        "kind",
        {"tfidf": "content.tfidf:TfidfConfig", "file": "content.embeddings:VectorFileConfig"},
    ),
    *_variants("image_encoders.<name>", "kind", {"file": "content.embeddings:VectorFileConfig"}),
    *_variants("datasets.<name>.options", "source", {name: f"data.readers.{name}:Options" for name in READERS}),
    *_variants("datasets.<name>.options.items", "source", {"files": "data.readers.files:EntityOptions"}),
)

BLOCK = "block"
LIMIT = "number"
# keys that code reads without a class: type; default where no file has one; meaning where no comment has it
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
    "protocols.<name>": (BLOCK, "", "Fields of `protocol` that the name stands for."),
    "profiles.<name>.about": ("text", "", "Kind of data set."),
    "profiles.<name>.min_events": (LIMIT, "none", "Least number of events of the log."),
    "profiles.<name>.max_events": (LIMIT, "none", "Number of events that the log stays below."),
    "profiles.<name>.min_events_per_user": (LIMIT, "none", "Least mean number of events of a user."),
    "profiles.<name>.max_events_per_user": (LIMIT, "none", "Mean number of events of a user that the log stays below."),
    "ingest.engine.name": ("`duckdb` or `spark`", "", "SQL engine that reads and samples raw logs."),
    "ingest.engine.memory_limit": ("text", "", ""),
    "ingest.engine.spill_folder": ("text or null", "", ""),
    "ingest.engine.threads": ("whole number from 1 or null", "", "Threads of the engine; null: all of the machine."),
    "ingest.engine.master": ("text", "`local[<threads>]`", "Address of the Spark cluster; Spark only."),
    "ingest.engine.settings": (BLOCK, "{}", "The engine's own settings, such as `spark.sql.shuffle.partitions`."),
    "text_encoders.<name>.kind": (
        "`tfidf` or `file`",
        "none",
        "Without it the encoder is a pretrained model. tfidf: TF-IDF and SVD; file: ready vectors.",
    ),
    "image_encoders.<name>.kind": ("`file`", "none", "Without it: a pretrained model. file: ready vectors."),
    "semantic_ids.kinds.<name>": (BLOCK, "", "Keys of `semantic_ids` with other values for this kind of ids."),
    "semantic_ids.quantizers.<name>.type": (
        "`rqvae`, `pqvae`, `residual_kmeans`, `pq` or `opq`",
        "",
        "Type of the quantizer. `pqvae` has the keys of `rqvae`.",
    ),
    "train.loss.name": (", ".join(f"`{name}`" for name in LOSSES), "", "The loss."),
    "train.optimiser.name": (
        "`adafactor`, `adam`, `adamw`, `rmsprop` or `sgd`",
        "",
        "The optimiser of torch. Further keys are its arguments, such as `betas` and `weight_decay`.",
    ),
    "train.optimiser.learning_rate": ("number above 0", "", "The full learning rate, which the schedule multiplies."),
    "train.optimiser.decay_vectors": ("true or false", "`true`", "false exempts biases and norms from `weight_decay`."),
    "train.optimiser.fused": (
        "true or false",
        "true on a CPU for item tables of 8 million weights and more",
        "Update all weights in one pass; for adam, adamw and sgd. The last bits of the weights differ.",
    ),
    "train.schedule.name": (", ".join(f"`{name}`" for name in SHAPES), "", "Shape of the learning rate over steps."),
    "train.schedule.warmup_steps": ("whole number from 0", "`0`", "Steps of a linear rise before the shape begins."),
    "datasets.<name>.baselines": ("list of texts", "that of globals.yml", "Baselines of this data set."),
}  # fmt: skip
BY_DATASET = ("cold_users", "embed", "evaluate", "protocol", "recommend", "semantic_ids", "side", "train", "tune")
EXTRA |= {
    f"datasets.<name>.{name}": (BLOCK, "none", f"Keys of `{name}` with other values for this data set.")
    for name in BY_DATASET
}

# settings of models that mean the same in every model, for classes that do not explain them
COMMON = {
    "alpha": "Weight of the penalties of the elastic net together.",
    "attention_dropout": "Dropout of attention weights.",
    "beam": "Width of the beam search: partial ids that are kept at every level.",
    "bias": "Whether linear layers and norms have biases.",
    "block": "Kind of the transformer blocks.",
    "buckets": "Buckets of relative positions, as in T5.",
    "decoder_layers": "Layers of the decoder.",
    "dim": "Width of embeddings and hidden states; of factor models the number of factors.",
    "dropout": "Dropout of embeddings and layers.",
    "epochs": "Passes over the training pairs.",
    "exponent": "Exponent of the popularity by which the matrix is scaled.",
    "factors": "Number of factors.",
    "feed_forward": "Width of the feed-forward layers; a small number is a multiple of `dim`.",
    "head_dim": "Width of an attention head.",
    "heads": "Attention heads.",
    "l1_ratio": "Share of the L1 penalty in the elastic net.",
    "layers": "Layers of the network; of an encoder and a decoder those of the encoder.",
    "learning_rate": "Learning rate.",
    "loss": "Loss of the factors.",
    "negatives": "Negatives drawn for each positive.",
    "qk_dim_factor": "Width of queries and keys relative to `dim`.",
    "search": "Search over the items: exact, or the approximate one of the paper.",
    "similarity": "Similarity of two rows.",
    "user_embeddings": "Whether users have embeddings of their own.",
}
