"""Types of the parameter blocks that nodes read, as pydantic models; ``build_config`` or Kedro builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from recpipe.config.checks import ConfigError, check_known, split_names


class Block(BaseModel):
    """Strict base model: unknown keys and values of another type, such as "1" for a number, are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ContentSlotsConfig(Block):
    """Share of the places of a list for cold items, and the model of type content_knn that fills them."""

    share: Annotated[float, Field(ge=0, lt=1)]
    model: str


class EvaluateConfig(Block):
    """conf/base/parameters/evaluate.yml, with the protocol to evaluate under."""

    recommend: PositiveInt
    content_slots: ContentSlotsConfig
    device: str
    submission: dict[str, Any]
    protocol: dict[str, Any]


class ReportConfig(Block):
    """conf/base/parameters/report.yml."""

    metric: str
    baseline: str
    resamples: PositiveInt
    examples: PositiveInt
    history: PositiveInt
    recommended: PositiveInt


class RecommendConfig(Block):
    """``recommend`` of conf/base/parameters/recommend.yml."""

    requests: str | None
    users: str | None
    columns: dict[str, str | None]  # column of the file by role
    options: dict[str, Any]  # further options of the reader, as of a data set
    k: PositiveInt
    bundle: Literal["newest", "measured", "production"]
    rules: dict[str, Any]
    items: str | None
    content: str | None
    index: dict[str, Any]
    now: NonNegativeInt | None
    device: str
    batch_users: PositiveInt
    memory_limit: str
    engine: Literal["local", "spark"]


class EnsembleConfig(Block):
    """conf/base/parameters/ensemble.yml."""

    members: str | None
    method: str
    weights: str | PositiveInt
    constant: float
    metric: str

    def names(self) -> list[str]:
        """Names of the members. Raises ConfigError without any."""
        if not self.members:
            raise ConfigError("ensemble.members is not set: name two or more models, as in sasrec+item_knn")
        return list(split_names(self.members))

    def member_weights(self) -> str | list[float]:
        """``valid``, ``adaptive``, ``equal`` or a number per member. Raises ConfigError for anything else."""
        if self.weights in ("valid", "adaptive", "equal"):
            return str(self.weights)
        try:
            return [float(weight) for weight in str(self.weights).split("+")]
        except ValueError:
            raise ConfigError(
                f"ensemble.weights is {self.weights!r}; allowed: valid, adaptive, equal, or a number for each member, "
                "as 2+1"
            ) from None


class TiesConfig(Block):
    """conf/base/parameters/ties.yml."""

    permutations: PositiveInt
    seed: NonNegativeInt
    metric: str


class ContextConfig(Block):
    """``context`` of conf/base/parameters/studies.yml."""

    users: PositiveInt
    metric: str


class StudyConfig(Block):
    """One of ``studies`` of conf/base/parameters/studies.yml: values of a setting, or an ablation."""

    name: str
    setting: str | None = None  # key of the model that is varied, such as dim or train.window
    values: str | int | float | None = None  # values of the setting, as 16+32+64
    without: dict[str, dict[str, Any]] = {}  # ablation: the settings that remove a part, by its name


class PrunerConfig(Block):
    """``pruner`` of conf/base/parameters/tune.yml."""

    name: Literal["median", "hyperband", "none"]
    startup_trials: NonNegativeInt
    warmup_epochs: NonNegativeInt


class TuneConfig(Block):
    """conf/base/parameters/tune.yml."""

    trials: PositiveInt | None
    minutes: PositiveFloat | None
    storage: SecretStr | None  # a URL may hold a password, which no log and no tracking shows
    study: str | None
    objectives: Literal["metric", "metric+seconds"]
    startup_trials: PositiveInt
    pruner: PrunerConfig
    seed: NonNegativeInt
    stale_minutes: PositiveFloat
    search_space: dict[str, Any]


class GeometryConfig(Block):
    """conf/base/parameters/geometry.yml."""

    models: str
    k: PositiveInt
    nulls: Annotated[int, Field(ge=2)]
    items: PositiveInt
    map: PositiveInt
    examples: PositiveInt
    nearest: PositiveInt
    beside: PositiveInt


class RegisterConfig(Block):
    """conf/base/parameters/register.yml."""

    name: str
    bundle: Literal["newest", "measured", "production"]
    champion: Literal["better", "always", "never"]
    metric: str
    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: PositiveInt

    def model_name(self, dataset: str, model: str) -> str:
        """Name of the registered model. Raises ConfigError for one that MLflow does not allow."""
        name = self.name.replace("{dataset}", dataset).replace("{model}", model)
        if not name.strip() or set(name) & set("/:{}") or name in (".", ".."):
            raise ConfigError(
                f"register.name is {self.name!r}; give a name without / and :, in which {{dataset}} and {{model}} "
                "stand for those of the run, such as shop-{model}",
                "name",
            )
        return name


class ServeConfig(Block):
    """conf/base/parameters/serve.yml."""

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    models: str
    bundle: Literal["newest", "measured", "production"]
    device: str
    threads: NonNegativeInt
    poll_seconds: PositiveFloat
    users: bool
    batch_users: PositiveInt
    queue_users: PositiveInt
    timeout: PositiveFloat
    client_timeout: PositiveFloat
    shutdown_timeout: PositiveFloat
    connections: PositiveInt
    max_body: PositiveInt
    max_users: PositiveInt
    max_history: PositiveInt
    max_k: PositiveInt
    max_places: PositiveInt
    max_candidates: PositiveInt
    max_items: PositiveInt


class ItemTable(Block):
    """Additional item columns from a file in the folder of the raw data."""

    file: str  # name of the file
    item_id: str = "item_id"  # column of item ids in it
    columns: list[str]  # columns that are added to the items
    optional: bool = False  # true: the file may be missing


class TextContent(Block):
    """The text of an item that is embedded."""

    template: str  # with columns of the items in braces, as `"{title}. {brand}"`
    tables: list[ItemTable] = []  # files with further columns


class Category(Block):
    """The item column with the category."""

    column: str  # column of the items
    of_list: Literal["first", "last"] = "last"  # the entry that counts where the column has lists


IdKind = Literal["text", "image", "text_image", "text_parts", "text_parts_32", "text_collaborative", "foreign"]


class ContentConfig(Block):
    """``content`` of a data set."""

    modalities: list[IdKind] | None = None  # semantic ids to build; null: text and image, where the data set has them
    text: TextContent | None = None  # the text of an item
    image: dict[str, Any] | None = None  # the image of an item: the fields of ImageSourceConfig, ``source`` as ``from``
    category: Category | None = None  # the category of an item, for measures of semantic ids


class DatasetConfig(Block):
    """conf/base/parameters/datasets/<name>.yml, without the blocks that override common ones."""

    title: str | None = None  # name in reports
    source: str  # reader of the files, a module in recpipe/data/readers
    like: str | None = None  # a data set that comes with the project, whose settings this one takes, below its own
    profile: str | None = None  # tuned settings of models: a name of ``profiles``, or auto, chosen by the log
    homepage: str | None = None  # web page of the data, for the report
    url: str | None = None  # archive that missing files are fetched from
    checksum: str | None = None  # hash of the archive: md5:... or sha256:...
    licence: str | None = None  # terms, shown once before a download
    citation: str | None = None  # publication of the data, for the report
    files: dict[str, Any] = {}  # name, pattern, or {name, url, checksum} of the roles interactions, items and users
    options: dict[str, Any] | None = None  # options of the reader: the fields of its ``Options``
    bad_rows: str = "quarantine"  # rows that cannot be used: quarantine (stored apart), drop (only counted) or fail
    steps: list[dict[str, Any]] | None = None  # cleaning and sampling, in order, as {step: k_core, users: 5, items: 5}
    protocols: dict[str, dict[str, Any] | None] | None = None  # named protocols with overrides, the default first
    content: ContentConfig | None = None  # text and images of items; without it there are no embeddings


class EmbedConfig(Block):
    """``embed`` of conf/base/parameters/embed.yml: names of the encoders."""

    text: str
    image: str
    refit: bool


class IdSource(Block):
    """File with ids of the kind ``foreign``, in the folder of the raw data; see ``recpipe.semantic_ids.id_files``."""

    file: str | None = None
    item_id: str = "item_id"  # column of a Parquet file
    column: str = "codes"  # column of a Parquet file
    item_map: str | None = None  # file with the item id of each dense number
    codes: PositiveInt | list[PositiveInt] | None = None  # per level; null: one more than the largest
    missing: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the items that may lack an id
    vectors: Literal["text", "image", "text_image"] | None = None  # whose neighbours the gate compares


class SemanticIdsConfig(Block):
    """conf/base/parameters/semantic_ids.yml for one ``kind`` of ids."""

    kind: str
    quantizer: str
    collisions: Literal["extra_digit", "reallocate", "sinkhorn", "keep", "refuse"]
    extra_codes: PositiveInt
    seed: NonNegativeInt
    refit: bool
    gate: dict[str, float | None]
    quantizers: dict[str, dict[str, Any]]  # settings of the quantizers by name, each with a type
    quantizer_from: str = "none"
    quantizer_with: str = "none"
    source: IdSource | None = None  # file with the ids of the kind foreign

    def type_and_settings(self) -> tuple[str, dict[str, Any]]:
        """Type and settings of the quantizer. Raises ConfigError for an unknown name."""
        settings = select_block(self.quantizer, self.quantizers, what="semantic_ids.quantizer")
        if "type" not in settings:
            raise ConfigError(f"semantic_ids.quantizers.{self.quantizer} lacks its type, such as rqvae")
        return str(settings["type"]), {key: value for key, value in settings.items() if key != "type"}


def select_block(name: str, blocks: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Return ``blocks[name]``. Raises ConfigError with the names that exist."""
    check_known(name, blocks, what=what)
    return dict(blocks[name])
