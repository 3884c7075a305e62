"""Named protocols: precedence, the name of equal fields only, names that a data set lists, unchanged ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recpipe.config import ConfigError, Configuration, parse_overrides, read_parameters
from recpipe.config.files import to_tree
from recpipe.data.protocol import Protocol

CONF = Path("conf")
COMMON: dict[str, Any] = {"name": None, "split": "leave_one_out", "history": 200, "exclude_seen": True}
NAMED: dict[str, Any] = {
    "sas": {"history": 200, "exclude_seen": True},
    "papers": {"history": 20, "exclude_seen": False},
    "temporal": {"split": "temporal"},
}
# ids of the default protocols before protocols had names, with the fingerprint "f"
IDS = {
    "amazon-2014-beauty": "46498102", "amazon-2018-games": "57f4fc2d", "amazon-2018-software": "016ee502",
    "amazon-2023-beauty": "55d5b3c5", "amazon-beauty": "db0bf89f", "ml-100k": "3f176def",
    "ml-10m": "207fb0f8", "ml-1m": "2a933d30",
    "ml-20m": "a14cb769", "ml-25m": "a4f34da1", "ml-32m": "c9900024", "ml-latest-small": "40297412",
    "music4all": "e38ce146", "online_retail": "31417713", "steam": "47e78bc1",
}  # fmt: skip


def shop(params: str = "", common: dict[str, Any] | None = None, **dataset: Any) -> Configuration:
    tree = to_tree(
        {
            "dataset": "shop", "model": "net", "protocol": COMMON | (common or {}), "protocols": NAMED, "profiles": {},
            "datasets": {"shop": {"source": "files", **dataset}}, "models": {}, "semantic_ids": {},
        },
        "conf",
    )  # fmt: skip
    configuration = Configuration(tree, parse_overrides(params))
    configuration.check()
    return configuration


def protocol(params: str = "", **dataset: Any) -> dict[str, Any]:
    return dict(shop(params, **dataset)["protocol"])


def test_the_more_specific_layer_wins() -> None:
    """Common < named < the data set's overrides of that name < the data set's block < command line."""
    listed = {"protocols": {"papers": {"history": 21}}}
    block = {"protocol": {"history": 22}}
    assert protocol()["history"] == 200
    assert protocol("protocol=papers")["history"] == 20
    assert protocol(**listed)["history"] == 21
    assert protocol(**listed, **block)["history"] == 22
    assert protocol("protocol.history=23", **listed, **block)["history"] == 23
    assert protocol("datasets.shop.protocol.history=24", **listed)["history"] == 24


def test_the_first_of_the_list_is_the_default_and_without_a_list_there_is_no_name() -> None:
    assert protocol(protocols={"papers": {}, "sas": {}}) == COMMON | NAMED["papers"] | {"name": "papers"}
    assert protocol() == COMMON
    assert protocol("protocol=none", protocols={"papers": {}}) == COMMON
    assert protocol(protocols={"papers": {}, "sas": {}}, protocol={"name": "sas"})["name"] == "sas"


@pytest.mark.parametrize("params", ["protocol=papers,protocol.history=30", "protocol.history=30,protocol.name=papers"])
def test_a_name_and_a_field_stand_in_one_command_in_any_order(params: str) -> None:
    assert protocol(params) == COMMON | NAMED["papers"] | {"history": 30, "name": None}
    assert protocol("protocol=papers,protocol.history=20")["name"] == "papers"  # nothing differs


def test_the_block_of_a_data_set_may_make_a_protocol_another_one() -> None:
    assert protocol("protocol=sas", protocol={"exclude_seen": False})["name"] is None
    assert protocol("protocol=sas", protocol={"exclude_seen": True})["name"] == "sas"
    assert protocol(protocols={"sas": {"exclude_seen": False}})["name"] == "sas"  # its own version of that protocol


def test_a_setting_of_the_common_file_does_not_take_the_name_away() -> None:
    assert shop(common={"history": 7}, protocols={"temporal": {}})["protocol"]["name"] == "temporal"


@pytest.mark.parametrize(
    ("params", "dataset", "message"),
    [
        ("protocol=paper", {"protocols": {"sas": {}, "papers": {}}},
         r"lists no protocol 'paper' \(did you mean 'papers'\?\); it has sas, papers.* define it"),
        ("protocol=temporal", {"protocols": {"sas": {}}}, r"it has sas\. Choose one, or add `temporal: \{\}` to its"),
        ("protocol=papers+temporl", {}, r"unknown protocol 'temporl' \(did you mean 'temporal'\?\)"),
        ("protocol=5", {}, r"unknown protocol '5'"),
        ("", {"protocols": {"papes": {}}}, r"unknown protocol 'papes' \(did you mean 'papers'\?\).*datasets.shop"),
        ("", {"protocols": {"papers": {"histry": 3}}}, r"unknown field of datasets.shop.protocols.papers 'histry'"),
        ("", {"protocols": {"papers": 30}}, r"datasets.shop.protocols.papers is 30; it must be a block"),
        ("", {"protocols": "papers"}, r"datasets.shop.protocols is 'papers'; it must be a block"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_is_refused_with_the_way_to_add_it(params: str, dataset: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shop(params, **dataset)


def test_several_names_are_several_protocols() -> None:
    both = shop("protocol=papers+sas", protocols={"sas": {}, "papers": {}})
    assert both.protocol_names == ("papers", "sas") and both["protocol"]["history"] == 20


def test_a_data_set_that_is_like_another_lists_its_protocols() -> None:
    datasets = {
        "shop": {"source": "files", "like": "beauty"},
        "beauty": {"source": "files", "protocols": {"papers": {}}},
    }
    tree = to_tree(
        {"dataset": "shop", "protocol": COMMON, "protocols": NAMED, "datasets": datasets, "models": {}}, "conf"
    )
    assert Configuration(tree)["protocol"]["name"] == "papers"


@pytest.mark.parametrize("dataset", IDS)
def test_default_ids_are_those_of_the_time_before_names(dataset: str) -> None:
    configuration = Configuration(read_parameters(CONF, "base"), {"dataset": dataset})
    default = Protocol.from_dict(configuration.parameters()["protocol"])
    assert replace(default, fingerprint="f").id == IDS[dataset]
    assert default.name == configuration.protocols.names[0]


def test_a_name_is_no_part_of_the_protocol() -> None:
    one, other = Protocol(dataset="x", name="sas"), Protocol(dataset="x")
    assert one.id == other.id and one == other and not one.data_differences(other)
    assert Protocol.from_dict(one.to_dict()).name == "sas"
