"""Rule of the alias champion: a new version takes it only if it is significantly better than the present one.

Both are measured by ranks of the same test users under the same protocol. A bundle made for use (refit, update,
added items) has no metrics of its own and is compared by those of the measured run that it stands for. Made later from
the run that the champion itself stands for, it takes the alias: the comparison would be of a run with itself, and the
newer bundle knows more events or items.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from recpipe.evaluation.significance import UserMetric, compare

BETTER, ALWAYS, NEVER = "better", "always", "never"  # values of register.champion
MEASURED = "train"  # made_by of a bundle that was evaluated itself


@dataclass(frozen=True)
class Evidence:
    """What a version of a registered model is compared by."""

    run: str  # the measured run, as online_retail/sasrec/seed_42
    run_version: str  # of its bundle
    protocol: str
    made_by: str = MEASURED
    bundle_version: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # of the test fold
    ranks: pa.Table | None = None  # of the test fold; None where they are lost

    def is_made_from(self, other: Evidence) -> bool:
        """Whether this is a later bundle for use of the measured run that ``other`` stands for."""
        same_run = (self.run, self.run_version) == (other.run, other.run_version)
        return same_run and self.made_by != MEASURED and self.bundle_version > other.bundle_version


@dataclass(frozen=True)
class Decision:
    """Whether a new version becomes champion, and why; ``p`` where the two were compared."""

    champion: bool
    reason: str
    difference: float | None = None
    p: float | None = None


FIRST = Decision(True, "the first version, without one to compare it with")


def decide(
    new: Evidence,
    champion: Evidence | None,
    *,
    rule: str = BETTER,
    metric: str = "ndcg@10",
    level: float = 0.95,
    resamples: int = 10_000,
) -> Decision:
    """Decide about the alias of a new version; ``champion`` is what the present one is compared by, None without."""
    decision = _without_comparison(new, champion, rule)
    if decision is not None or champion is None:
        return decision or FIRST
    if new.protocol != champion.protocol:
        under = f"measured under protocol {new.protocol}, the champion under {champion.protocol}"
        return Decision(False, f"not compared: {under}; register.champion=always moves the alias all the same")
    if new.ranks is None or champion.ranks is None:
        whose = "its own" if new.ranks is None else "the champion's"
        return Decision(False, f"not compared: {whose} ranks of the test users are missing")
    return _compare(new.ranks, champion.ranks, metric, level, resamples)


def _without_comparison(new: Evidence, champion: Evidence | None, rule: str) -> Decision | None:
    if rule == NEVER:
        return Decision(False, "register.champion is never")
    if champion is None:
        return FIRST
    if rule == ALWAYS:
        return Decision(True, "register.champion is always; it was not compared with the present champion")
    if new.is_made_from(champion):
        return Decision(True, f"made by {new.made_by} from {new.run}, the run that the champion stands for")
    return None


def _compare(new: pa.Table, champion: pa.Table, metric: str, level: float, resamples: int) -> Decision:
    try:
        values = UserMetric.of({"champion": [champion], "new": [new]}, metric=metric)
    except ValueError as error:
        return Decision(False, f"not compared: {error}")
    result = compare(values, baseline="champion", resamples=resamples, level=level)
    difference = result.differences["new"]
    mine, other = (result.estimates[name].mean for name in ("new", "champion"))
    numbers = f"{metric} {mine:.4f}, the champion's {other:.4f}, p = {difference.p:.4f} over {result.users:,} users"
    if difference.mean > 0 and difference.p < 1 - level:
        return Decision(True, f"significantly better: {numbers}", difference.mean, difference.p)
    word = "not significantly better" if difference.mean > 0 else "not better"
    return Decision(False, f"{word}: {numbers}", difference.mean, difference.p)
