"""MQL4GRec: Zhai et al., Multimodal Quantitative Language for Generative Recommendation, ICLR 2025.

Text ids and image ids are two tongues of one vocabulary, and one encoder–decoder of T5's shape translates: the next
item by text from text, by image from images, by either from the other (the fused tasks), and an item's image id from
its text id and back (alignment). Lists found by text and by images are put together.

Differences: which tongue is written is told by the token that the decoder begins with, and that an item is aligned by
the one its history begins with, instead of four prompt tokens for each task; so one encoding of a history serves both
tongues. All tasks are trained in every step, by their weights, instead of in shares of the examples. Search is
constrained to the catalogue, with scores of all codes and no length penalty. Pretraining: a run on other data sets
first, whose ids are of the same quantizer, and ``init_from`` it. Rows and passes: as in TIGER.

B batch, T events, W targets of a row, L levels, I items, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.decoding.fusion import RULES, fused
from recpipe.layers.code_tokens import ItemCodes, targets_of
from recpipe.layers.code_transformer import CodeShape, CodeTransformer, Read, Writing, writing
from recpipe.models.generator import Generator, Limits
from recpipe.models.recommender import Criterion
from recpipe.semantic_ids.ids import CatalogueIds

ALIGNED = 256  # items aligned in a step, at most


class MQL4GRec(Generator):
    """Reads ids of one modality or several; with one, what remains is the task that TIGER has."""

    losses = ("full_softmax",)

    @dataclass(frozen=True)
    class Config(CodeShape):
        """``beam`` of the search.

        ``fusion`` weighs each of the tasks from one tongue to the other, ``alignment`` those of single items, against
        1 of a task within a tongue. ``ensemble``: mixture, reciprocal or paper, see ``recpipe.decoding.fusion``.
        ``weights`` of the modalities in it, in the order of ``ids``; where there are two, that of the first is chosen
        from ``choices`` on the validation fold after training.
        """

        fusion: float = 0.5
        alignment: float = 0.5
        beam: int = 20
        ensemble: str = "mixture"
        weights: tuple[float, ...] | None = None
        choices: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)

        def __post_init__(self) -> None:
            CodeShape.__post_init__(self)
            if self.ensemble not in RULES:
                raise ValueError(f"ensemble is {self.ensemble!r}; allowed: {', '.join(RULES)}")
            if min(self.fusion, self.alignment, *(self.weights or ()), *self.choices) < 0:
                raise ValueError("fusion, alignment, weights and choices are weights, each at least 0")

    config: Config
    weights: Tensor  # (M,) of the modalities

    def __init__(
        self, config: Config, *, n_items: int, max_length: int, ids: Mapping[str, CatalogueIds]
    ) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.books = nn.ModuleDict({name: ItemCodes(given) for name, given in ids.items()})
        self.names = tuple(ids)
        self.modality = self.names[0]
        books = [self.book(name) for name in self.names]
        self.before = [
            sum(book.size for book in books[:m]) for m in range(len(books))
        ]  # tokens of earlier ones
        self.total, levels = sum(book.size for book in books), [book.levels for book in books]
        self.unknown = [self.total + sum(levels[:m]) for m in range(len(books))]
        self.transformer = CodeTransformer(
            config,
            self.total,
            sum(levels),
            writes=len(books),
            more=1,
        )
        given = config.weights or [1 / len(books)] * len(books)
        if len(given) != len(books):
            raise ValueError(f"weights are {config.weights}; the model reads {', '.join(self.names)}")
        self.register_buffer("weights", torch.tensor(given, dtype=torch.float32))

    @property
    def codes(self) -> ItemCodes:  # type: ignore[override]
        """Those of the first modality."""
        return self.book(self.modality)

    @property
    def probabilistic(self) -> bool:  # type: ignore[override]
        """Whether scores are log-probabilities."""
        return len(self.names) == 1 or self.config.ensemble == "mixture"

    def book(self, name: str) -> ItemCodes:
        """The codes of a modality."""
        book = self.books[name]
        assert isinstance(book, ItemCodes)
        return book

    def item_codes(self) -> dict[str, ItemCodes]:
        return {name: self.book(name) for name in self.names}

    def item_tables(self) -> dict[str, Tensor]:
        embedded = self.transformer.input
        return {
            f"{name} codes": embedded.items(self.tokens(m), self.book(name).known)
            for m, name in enumerate(self.names)
        }

    def on_device(self, sequences: Sequences, *, window: int) -> DeviceSequences:
        features = self.transformer.input.features(sequences.users)
        return DeviceSequences(sequences, window=window, device=self.device, features=features)

    def tokens(self, m: int) -> Tensor:
        """(I + 1, L): the tokens of every item in modality ``m``, numbered through all modalities."""
        book = self.book(self.names[m])
        own = book.tokens
        moved = torch.where(own > book.size, own - book.size + self.unknown[m], own + self.before[m])
        return moved * (own > 0)

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        everything = torch.ones(self.n_items + 1, dtype=torch.bool, device=self.device)
        everything[0] = False
        inputs, targets, real = targets_of(batch, everything, one_pass=self.config.one_pass)
        tokens = [self.tokens(m) for m in range(len(self.names))]
        total, whole = self.weights.new_zeros(()), 0.0
        for source, read in enumerate([self.transformer.read(inputs, each) for each in tokens]):
            for goal in range(len(tokens)):
                weight = 1.0 if source == goal else self.config.fusion
                if weight:
                    total = total + weight * self._task(read, targets, real, goal, tokens[goal], criterion)
                    whole += weight
        if len(tokens) > 1 and self.config.alignment:
            items = targets[real].unique()
            items = items[torch.randperm(len(items), device=items.device)[:ALIGNED]]
            for source in range(len(tokens)):
                for goal in (goal for goal in range(len(tokens)) if goal != source):
                    aligned = self._aligned(items, source, goal, tokens, criterion)
                    total, whole = total + self.config.alignment * aligned, whole + self.config.alignment
        return total / whole

    def cached_weights(self) -> AbstractContextManager[None]:
        return self.transformer.cached_weights()

    def steps(self, batch: Batch) -> Writing:
        return self._writing(batch, 0)

    def found(self, batch: Batch, k: int, limits: Limits) -> tuple[Tensor, Tensor]:
        if len(self.names) == 1:
            return super().found(batch, k, limits)
        most = min(self.config.beam, self.n_items)
        lists = [
            self.search(self.book(name), self._writing(batch, m), most, limits)
            for m, name in enumerate(self.names)
        ]
        levels = [self.book(name).levels for name in self.names]
        return fused(lists, k, rule=self.config.ensemble, weights=self.weights.tolist(), codes=levels)

    def tune(self, validate: Callable[[], float]) -> dict[str, float]:
        """Takes that of ``choices`` for which ``validate``, a metric of the validation fold, is highest."""
        if len(self.names) != 2 or self.config.ensemble == "paper" or not self.config.choices:
            return {}
        found = {}
        for weight in self.config.choices:
            self.weights.copy_(torch.tensor([weight, 1 - weight]))
            found[weight] = validate()
        best = max(found, key=found.__getitem__)
        self.weights.copy_(torch.tensor([best, 1 - best]))
        return {self.names[0]: best}

    def _task(
        self, read: Read, targets: Tensor, real: Tensor, goal: int, tokens: Tensor, criterion: Criterion
    ) -> Tensor:
        """The next item in modality ``goal``; 0 where no target has an id there."""
        book = self.book(self.names[goal])
        known = real & book.known[targets]
        if not known.any():
            return self.weights.new_zeros(())
        hidden = self.transformer.write(read, tokens[targets], kind=goal)
        return self.transformer.error(
            hidden[known], targets[known], book, criterion, before=self.before[goal]
        )

    def _aligned(
        self, items: Tensor, source: int, goal: int, tokens: list[Tensor], criterion: Criterion
    ) -> Tensor:
        """One id of single ``items`` (n,) from the other; 0 where none has both."""
        known = [self.book(self.names[m]).known for m in (source, goal)]
        items = items[known[0][items] & known[1][items]]
        if not len(items):
            return self.weights.new_zeros(())
        source_ids, wanted = tokens[source][items][:, None], tokens[goal][items][:, None]
        begin = self.transformer.input.more + len(self.names)
        embedded = self.transformer.input.of(
            source_ids, torch.ones_like(items, dtype=torch.bool)[:, None], torch.full_like(items, begin)
        )
        hidden = self.transformer.write(self.transformer.encode(embedded), wanted, kind=goal, each=False)
        book, before = self.book(self.names[goal]), self.before[goal]
        return self.transformer.error(hidden[:, 0], items, book, criterion, before=before)

    def _writing(self, batch: Batch, m: int) -> Writing:
        book = self.book(self.names[m])
        first = [each + self.before[m] for each in book.first]
        read = self.transformer.read(batch, self.tokens(m))
        return writing(self.transformer, read, first, book.sizes, kind=m)
