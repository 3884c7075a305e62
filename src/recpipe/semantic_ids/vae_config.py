"""Settings that the RQ-VAE and the PQ-VAE share, with their reasons. Numbers behind the defaults: LOG.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from recpipe.semantic_ids.quantizer import QuantizerConfig


@dataclass(frozen=True)
class DeadCodes:
    """When codes that no item chooses are moved onto items that are badly reconstructed."""

    every: int = 5  # epochs
    until: float = 0.7  # of all steps; the rest is for those moved last to settle; 0: never

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.until <= 1:
            raise ValueError(
                f"dead_codes are every {self.every!r}, until {self.until!r}; allowed: at least 1, and from 0 to 1"
            )


@dataclass(frozen=True)
class VAEConfig(QuantizerConfig):
    """Defaults were chosen on Amazon Beauty (12,101 items); bounds on steps keep them sane for 50 items and for 1e6."""

    standardise: bool = True  # every dimension to mean 0 and variance 1: without it codebooks collapse
    widths: tuple[int, ...] = (512, 256, 128)  # of the encoder's hidden layers; the decoder mirrors them
    latent: int = 16  # fewer: items differ in more prefixes; more: vectors are reconstructed better
    beta: float = 0.25  # weight of the commitment loss
    decay: float = 0.95  # of the moving averages that codebooks are
    batch: int = 512
    epochs: int = 140
    least_steps: int = 600  # a step is one batch
    most_steps: int = 10_000
    warm_up: float = 0.07  # share of the steps without codes, before k-means
    lr: float = 5e-3  # at its highest: a few steps of warm-up, then a cosine to nearly nothing
    weight_decay: float = 1e-4
    dropout: float = 0.1  # share of a vector that the encoder does not see in a step: few items overfit soon
    dead_codes: DeadCodes = DeadCodes()
    separate: float = (
        4.0  # weight with which items of equal codes are committed to free ones; 0: they are not
    )
    sinkhorn: tuple[float, ...] | None = None  # epsilon per level, 0: none; LC-Rec has [0, 0, 0.003]
    settle: float = 0.25  # share of the steps until codes are settled enough for a state to be kept
    held_out: float = 0.05  # share of the items that choose the best state; 0: all do
    patience: int = 15  # looks at the held-out items (about 50 in a fit) without a better one
    precision: str = "auto"  # of the network in training: fp32, bf16; auto: bf16 where there is AMX
    threads: int = (
        1  # in training: repeatable on any machine; more gain little here, and lose much on a busy one
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dead_codes, DeadCodes):
            object.__setattr__(self, "dead_codes", _dead_codes(self.dead_codes))
        for name in ("latent", "batch", "epochs", "least_steps", "most_steps", "patience", "threads"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("latent", self.latent >= self.levels, f"at least levels, {self.levels}")
        for name in ("decay", "held_out", "warm_up", "dropout", "settle"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("beta", "weight_decay", "separate"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("lr", self.lr > 0, "above 0")
        self._check("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32, bf16")
        self._check("widths", all(width >= 1 for width in self.widths), "at least 1 each")
        if self.sinkhorn is not None:
            fits = len(self.sinkhorn) == self.levels and min(self.sinkhorn) >= 0
            self._check("sinkhorn", fits, f"null, or {self.levels} numbers of at least 0")

    def _check(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


def _dead_codes(values: Mapping[str, Any]) -> DeadCodes:
    known = [field.name for field in fields(DeadCodes)]
    if unknown := [str(key) for key in values if key not in known]:
        raise ValueError(f"dead_codes: unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
    return DeadCodes(**values)
