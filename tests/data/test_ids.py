import numpy as np
import pyarrow as pa
import pytest

from recpipe.data.features import align_rows
from recpipe.data.ids import Ids

NAMES = ["b", "a", "ß", "", "d"]


@pytest.fixture(params=["list", "objects", "strings", "arrow", "long", "chunks", "dictionary", "slice"])
def ids(request):
    return {
        "list": lambda: Ids(NAMES),
        "objects": lambda: Ids(np.array(NAMES, object)),
        "strings": lambda: Ids(np.array(NAMES)),
        "arrow": lambda: Ids(pa.array(NAMES)),
        "long": lambda: Ids(pa.array(NAMES, pa.large_string())),
        "chunks": lambda: Ids(pa.chunked_array([NAMES[:2], NAMES[2:]])),
        "dictionary": lambda: Ids(pa.array(NAMES).dictionary_encode()),
        "slice": lambda: Ids(pa.array(["x", *NAMES, "y"]))[1:6],
    }[request.param]()


def test_ids_index_like_an_array_of_str(ids):
    expected = np.array(NAMES, object)
    assert len(ids) == 5 and list(ids) == ids.tolist() == NAMES and ids == Ids(NAMES) and ids != Ids(NAMES[:4])
    assert ids[1] == "a" and type(ids[np.int64(2)]) is str
    for key in (np.array([4, 0, 0]), np.array([], np.int64), np.arange(5) > 2, slice(1, 3), slice(None, None, 2), [3]):
        assert ids[key].tolist() == expected[key].tolist()
    assert np.asarray(ids).tolist() == NAMES and np.asarray(ids).dtype == object
    assert pa.array(ids, pa.string()).to_pylist() == NAMES
    assert [part.tolist() for part in ids.parts(2)] == [NAMES[:2], NAMES[2:4], NAMES[4:]]
    with pytest.raises(IndexError):
        ids[np.array([5])]


def test_places_among_others(ids):
    assert ids.index_in(Ids(["d", "ß", "b", "b", "z"])).tolist() == [2, -1, 1, -1, 0]
    assert Ids(["x", "d"]).index_in(ids).tolist() == [-1, 4]
    assert ids.index_in(Ids([])).tolist() == [-1] * 5 and Ids([]).index_in(ids).tolist() == []
    assert Ids.concatenate(ids, Ids(["x"])).tolist() == [*NAMES, "x"]


def test_values_that_are_no_ids_are_errors():
    with pytest.raises(ValueError, match="1 of 2 ids are missing"):
        Ids(["a", None])
    with pytest.raises(TypeError):
        Ids([1, 2])
    with pytest.raises(TypeError, match="ids are strings, not int64"):
        Ids(pa.array([1, 2]))


def test_ids_with_more_text_than_a_string_array_holds(tmp_path):
    path = tmp_path / "text"  # sparse: the ids lie behind 2 GiB that nobody writes
    with path.open("wb") as file:
        file.seek(2**31)
        file.write(b"abc")
    offsets = pa.py_buffer(np.arange(2**31, 2**31 + 4, dtype=np.int64).tobytes())
    buffers = [None, offsets, pa.memory_map(str(path)).read_buffer()]
    long = Ids(pa.Array.from_buffers(pa.large_string(), 3, buffers))
    assert long.tolist() == ["a", "b", "c"]
    assert Ids(["c", "x"]).index_in(long).tolist() == [2, -1]
    assert long.index_in(Ids(["b"])).tolist() == [-1, 0, -1]
    assert long == Ids(["a", "b", "c"]) and Ids(["a", "b", "c"]) == long
    table = align_rows(pa.table({"user_id": ["b"], "age": [7]}), "user_id", long)
    assert table["age"].to_pylist() == [None, 7, None]
