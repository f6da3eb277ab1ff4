"""Shards are read as the library writes them, and written as it reads them."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hcxjax.convert.safetensors_folder import INDEX, SafetensorsFolder, Tensor, listing, write_tensors

A = np.arange(12, dtype=np.float32).reshape(3, 4)


def shards(folder, **placed):
    """An index over two files: a in one.safetensors, b and c in two.safetensors, unless `placed` says otherwise."""
    save_file({"a": A}, folder / "one.safetensors")
    save_file({"b": A + 1, "c": A + 2}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"} | placed
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: file for name, file in names.items() if file}}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_slices_of_a_file(tmp_path, dtype, name):
    save_file({"a": A.astype(dtype)}, tmp_path / name)
    folder = SafetensorsFolder(tmp_path)
    read = folder.read("a", (slice(1, 3), slice(0, 2)))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, A[1:3, :2].astype(dtype))
    np.testing.assert_array_equal(folder.read("a"), A.astype(dtype))


def test_shards_by_their_index(tmp_path):
    shards(tmp_path)
    save_file({"z": A}, tmp_path / "consolidated.safetensors")  # named by nobody
    folder = SafetensorsFolder(tmp_path)
    assert sorted(folder.tensors) == ["a", "b", "c"]
    assert folder.problems == []
    np.testing.assert_array_equal(folder.read("c"), A + 2)


def test_an_index_that_does_not_fit_its_files(tmp_path):
    shards(tmp_path, c=None, d="two.safetensors")
    problems = " ".join(SafetensorsFolder(tmp_path).problems)
    assert f"c is in two.safetensors, where {INDEX} does not have it" in problems
    assert f"d is not in two.safetensors, where {INDEX} has it" in problems


@pytest.mark.parametrize(
    ("file", "message"),
    [("../outside.safetensors", "outside its folder"), ("three.safetensors", "lacks files .*three.safetensors")],
)
def test_an_index_that_names_other_files(tmp_path, file, message):
    shards(tmp_path, d=file)
    with pytest.raises(ValueError, match=message):
        SafetensorsFolder(tmp_path)


def test_files_that_are_no_safetensors(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.safetensors files"):
        SafetensorsFolder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"only pickle files \(pytorch_model\.bin\), and reading one can run any code"):
        SafetensorsFolder(tmp_path)
    save_file({"a": A}, tmp_path / "model.safetensors")
    assert list(SafetensorsFolder(tmp_path).tensors) == ["a"]
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:20], b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) is no whole safetensors file"):
            SafetensorsFolder(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="is no index of safetensors"):
        SafetensorsFolder(tmp_path)
    (tmp_path / INDEX).unlink()
    for name in ("one", "two"):
        save_file({"a": A}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"2 \.safetensors files and no"):
        SafetensorsFolder(tmp_path)


def tensor(name, values, dtype="F32", rows=2):
    return Tensor(
        name, dtype, values.shape, lambda: (values[start : start + rows] for start in range(0, len(values), rows))
    )


def test_the_library_reads_what_is_written(tmp_path):
    told = []
    tensors = [tensor("a", A), tensor("한", A + 1, "BF16"), tensor("c", A[0], "F16")]
    assert write_tensors(tmp_path, tensors, 10**6, told.append) == [tmp_path / "model.safetensors"]
    read = load_file(tmp_path / "model.safetensors")
    assert {name: value.dtype.name for name, value in read.items()} == {
        "a": "float32",
        "한": "bfloat16",
        "c": "float16",
    }
    np.testing.assert_array_equal(read["a"], A)
    np.testing.assert_array_equal(read["한"], (A + 1).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(read["c"], A[0].astype(np.float16))
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}  # some releases of transformers refuse a file without it
    assert sum(told) == sum(one.nbytes for one in tensors) == 48 + 24 + 8


def test_shards_are_no_larger_than_asked(tmp_path):
    tensors = [tensor(name, A) for name in "abcde"] + [tensor("large", np.zeros((9, 9), np.float32))]
    files = write_tensors(tmp_path, tensors, 100)
    assert [file.name for file in files] == [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
    assert [sorted(load_file(file)) for file in files] == [["a", "b"], ["c", "d"], ["e"], ["large"]]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 48 + 324
    assert SafetensorsFolder(tmp_path).problems == []
    assert sorted(SafetensorsFolder(tmp_path).tensors) == ["a", "b", "c", "d", "e", "large"]


def test_values_beyond_a_dtype(tmp_path):
    with pytest.raises(ValueError, match="b has values beyond F16"):
        write_tensors(tmp_path, [tensor("b", A * 1e5, "F16")], 10**6)
    write_tensors(tmp_path, [tensor("b", np.asarray([np.inf, np.nan]), "F16")], 10**6)


def test_long_listings_are_cut():
    assert listing(["a", "b"]) == "a; b"
    assert listing([str(n) for n in range(40)]).endswith("11; and 28 more")
