"""A folder is there whole or not at all."""

import collections
import shutil
import signal
import subprocess
import sys

import pytest

from hcxjax.convert.whole_folder import check_space, whole_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_at_the_end(tmp_path):
    target = tmp_path / "made" / "model"
    with whole_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "x"
    assert names(target.parent) == ["model"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("x")
        raise KeyError
    assert names(tmp_path) == []


def test_what_exists_is_not_written_over(tmp_path):
    (tmp_path / "model").mkdir()
    with whole_folder(tmp_path / "model"):  # empty: as good as absent
        pass
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ValueError, match="model exists; name another"), whole_folder(tmp_path / "model"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file exists"), whole_folder(tmp_path / "file"):
        pass
    assert names(tmp_path / "model") == ["mine"]


def test_a_killed_writer_is_cleared_away_and_a_living_one_is_not(tmp_path):
    program = (
        "import sys, time, pathlib; from hcxjax.convert.whole_folder import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print('.', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "model")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    with pytest.raises(ValueError, match="another process is writing"), whole_folder(tmp_path / "model"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path) == ["model.unfinished"]
    with whole_folder(tmp_path / "model") as folder:
        assert names(folder) == []
        (folder / "whole").touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["whole"]


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5))
    check_space(tmp_path / "a" / "model", 5)
    with pytest.raises(ValueError, match="needs up to 6 bytes and 5 are free"):
        check_space(tmp_path / "a" / "model", 6)
