"""Search space of a model: ranges of its settings, the conf block ``search_space``, and Optuna's distributions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from recpipe.config import ConfigError, RunConfig, build_config, check_known
from recpipe.config.files import is_other_range
from recpipe.models.registry import model_class
from recpipe.training.settings import check_model
from recpipe.training.variants import all_settings, with_overrides

COMMON = "tune.search_space"
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Range of values of a setting: from ``low`` to ``high`` (``log``: on a logarithmic scale), or ``choices``.

    Whole numbers where both ends are; ``step`` is between two values. Lists among the choices are possible, blocks are
    not. ``default`` is the value of a setting that the conf does not name, such as an argument of the optimiser.
    """

    low: float | None = None  # smallest value
    high: float | None = None  # largest value
    log: bool = False  # whether values are drawn on a logarithmic scale
    step: float | None = None  # distance between two values
    choices: tuple[Any, ...] | None = None  # the only values, in place of a range; lists are possible, blocks are not
    default: Any = None

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if self.choices is not None:
            object.__setattr__(self, "choices", tuple(self.choices))
            if ends != (None, None) or self.log or self.step is not None:
                raise ValueError("choices stand alone, without low, high, log and step")
            if not self.choices or any(isinstance(choice, Mapping) for choice in self.choices):
                raise ValueError(f"choices is {list(self.choices)!r}; give one or more values that are no blocks")
        elif self.low is None or self.high is None:
            raise ValueError("low or high is missing: give both, or choices")
        elif self.low > self.high or (self.log and self.low <= 0):
            rule = "0 < low <= high" if self.log else "low <= high"
            raise ValueError(f"low is {self.low} and high {self.high}; it must be {rule}")
        elif self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"step is {self.step}; it must be above 0, and without log")

    def including(self, value: Any) -> Range:
        """Return the range that contains ``value`` too, which is the first trial.

        Raises ValueError for a value in no range.
        """
        if self.choices is not None:
            is_there = any(_same(encode(choice), encode(value)) for choice in self.choices)
            return self if is_there else replace(self, choices=(*self.choices, value))
        if not _is_number(value):
            raise ValueError(f"the conf has {value!r}, which lies in no range: write choices, with it among them")
        assert self.low is not None and self.high is not None
        low, high = min(self.low, value), max(self.high, value)
        if isinstance(value, float):
            low, high = float(low), float(high)
        off_grid = self.step is not None and abs((value - low) / self.step - round((value - low) / self.step)) > 1e-9
        return replace(self, low=low, high=high, step=None if off_grid else self.step)

    def distribution(self) -> BaseDistribution:
        """Return the distribution of Optuna; lists are among its choices as JSON."""
        if self.choices is not None:
            return CategoricalDistribution([encode(choice) for choice in self.choices])
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None):
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        step = None if self.step is None else float(self.step)
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=step)

    def decode(self, value: Any) -> Any:
        """Return the value of the setting for that of Optuna."""
        if self.choices is None:
            return value
        return next(choice for choice in self.choices if _same(encode(choice), value))

    def examples(self) -> tuple[Any, ...]:
        """Return values to check before any training: all choices, or both ends."""
        return self.choices if self.choices is not None else (self.low, self.high)


@dataclass(frozen=True)
class SearchSpace:
    """Ranges by setting, whose names are as in ``recpipe.training.variants.Study``, and the model's values of today."""

    ranges: Mapping[str, Range]
    configured: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ranges)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions of Optuna by setting."""
        return {setting: values.distribution() for setting, values in self.ranges.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return the settings of a trial."""
        return {name: values.decode(_suggest(trial, name, values.distribution())) for name, values in self._items()}

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings for the parameters of a stored trial, without those that it lacks."""
        return {name: values.decode(params[name]) for name, values in self._items() if name in params}

    def first_params(self) -> dict[str, Scalar]:
        """Return the parameters of the configuration as it stands."""
        return {name: encode(self.configured[name]) for name in self.ranges}

    def description(self) -> dict[str, Any]:
        """Return the ranges as JSON."""
        return {name: _shown(values) for name, values in self._items()}

    def _items(self) -> Iterator[tuple[str, Range]]:
        yield from self.ranges.items()


def search_space(config: RunConfig, common: Mapping[str, Any]) -> SearchSpace:
    """Return the search space of a model: its own block over ``common``, that of all models trained by gradient.

    Raises ConfigError with the nearest spelling for settings that the model does not have, and for values that it
    refuses. Only the ends of a range, and choices one at a time, are tried.
    """
    own, where = flatten(config.search_space), f"models.{config.name}.search_space"
    shared = {} if model_class(config.type).closed_form else flatten(common)
    blocks: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for setting in dict.fromkeys([*shared, *own]):
        block, place = own.get(setting, shared.get(setting)), where if setting in own else COMMON
        if block is None:  # null removes it
            continue
        below = shared.get(setting) if setting in own else None
        blocks[setting] = place, block if below is None or is_other_range(below, block) else {**below, **block}
    ranges, configured = {}, {}
    for setting, (place, block) in blocks.items():
        try:
            check_setting(config, setting, where=place)
            values = build_config(Range, block, where=f"{place}.{setting}")
            configured[setting] = configured_value(config, setting, values, where=place)
            ranges[setting] = _including(values, configured[setting], where=f"{place}.{setting}")
            for example in ranges[setting].examples():
                _try(config, setting, example, where=f"{place}.{setting}")
        except ConfigError as error:
            raise ConfigError(str(error), setting) from error
    return SearchSpace(ranges, configured)


def _including(values: Range, value: Any, *, where: str) -> Range:
    try:
        return values.including(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _try(config: RunConfig, setting: str, value: Any, *, where: str) -> None:
    """Raise ConfigError where the model refuses a value."""
    try:
        check_model(with_overrides(config, {setting: value}))
    except ValueError as error:
        raise ConfigError(f"{where} has {value!r}, which {config.name} refuses: {error}") from error


def flatten(block: Mapping[str, Any], path: str = "") -> dict[str, Mapping[str, Any] | None]:
    """Return the ranges of a nested block by dotted setting; None for a setting that is removed.

    Raises ConfigError for a value that is no range.
    """
    result: dict[str, Mapping[str, Any] | None] = {}
    for name, value in block.items():
        setting = f"{path}.{name}" if path else name
        if value is not None and not (isinstance(value, Mapping) and value):
            raise ConfigError(
                f"search_space.{setting} is {value!r}; give {{low: 0.0, high: 1.0}} or {{choices: [1, 2]}}, "
                "or null to leave the setting as it is",
                setting,
            )
        if value is None or _is_range(value):
            result[setting] = value
        else:
            result |= flatten(value, setting)
    return result


def _is_range(block: Mapping[str, Any]) -> bool:
    """Return whether a block is a range, and not one of settings: those are ranges themselves, or removed by null."""
    values = block.values()
    return not any(isinstance(value, Mapping) for value in values) and any(value is not None for value in values)


def check_setting(config: RunConfig, setting: str, *, where: str) -> None:
    """Raise ConfigError with the nearest spelling for a setting that the model does not have.

    Keys inside of a loss, optimiser or schedule are checked by the code that takes them.
    """
    settings, (block, *keys) = all_settings(config), setting.split(".")
    if len(keys) < 2 or not isinstance(settings.get(f"{block}.{keys[0]}"), Mapping):
        check_known(setting, settings, what=f"setting in {where}")


def configured_value(config: RunConfig, setting: str, values: Range, *, where: str) -> Any:
    """Return the value of a setting in the conf, else its default. Raises ConfigError where there is neither."""
    settings = all_settings(config)
    if setting in settings:
        return settings[setting]
    block, first, *keys = setting.split(".")
    value = settings[f"{block}.{first}"]
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and values.default is None:
        raise ConfigError(
            f"{where}.{setting}: the conf of {config.name} on {config.dataset} has no value of it, which the first "
            "trial takes; add `default:` to the range, or null to leave it out"
        )
    return values.default if value is None else value


def encode(value: Any) -> Scalar:
    """Return a value as Optuna stores it: scalars as they are, lists as JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _same(first: Scalar, second: Scalar) -> bool:
    """Return whether two scalars are equal, where True is not 1."""
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(values: Range) -> dict[str, Any]:
    return {
        key: value
        for key, value in json.loads(json.dumps(asdict(values))).items()
        if value is not None and value is not False
    }
