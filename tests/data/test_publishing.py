import os
import signal
import subprocess
import sys
import time

import pytest

from hcxjax.data import publishing
from hcxjax.data.publishing import publish

SLOW_WRITER = """
import os, sys, time
from hcxjax.data import publishing
from hcxjax.data.publishing import publish

def write(folder):
    with open(os.path.join(folder, "part"), "w") as file:
        file.write("half")
    open(sys.argv[2], "a").write("w")
    time.sleep(float(sys.argv[3]))
    os.rename(os.path.join(folder, "part"), os.path.join(folder, "whole"))

publish(sys.argv[1], write)
assert os.listdir(sys.argv[1]) == ["whole"]
"""


def start_writer(folder, log, seconds):
    return subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(folder), str(log), str(seconds)])


def wait_for(log):
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_whole(folder):
    with open(os.path.join(folder, "whole"), "w") as file:
        file.write("all")


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    writer = start_writer(folder, log, 60)
    wait_for(log)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not folder.exists()
    assert list(tmp_path.glob("store.writing-*"))
    publish(str(folder), write_whole)
    assert os.listdir(folder) == ["whole"]
    assert not list(tmp_path.glob("store.writing-*"))


def test_two_processes_at_once_write_once(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    writers = [start_writer(folder, log, 0.3) for _ in range(2)]
    assert [writer.wait(timeout=30) for writer in writers] == [0, 0]
    assert log.read_text() == "w"


def test_waiting_has_an_end(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    writer = start_writer(folder, log, 60)
    wait_for(log)
    with pytest.raises(TimeoutError, match="store"):
        publish(str(folder), write_whole, timeout_s=0.3)
    writer.kill()
    writer.wait()


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        write_whole(folder)
        raise ValueError("no documents")

    with pytest.raises(ValueError, match="no documents"):
        publish(str(tmp_path / "store"), fail)
    assert os.listdir(tmp_path) == ["store.lock"]


def test_what_is_there_is_not_written_again(tmp_path):
    publish(str(tmp_path / "store"), write_whole)
    publish(str(tmp_path / "store"), lambda folder: pytest.fail("written twice"))


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path):
    path = tmp_path / "manifest.json"
    publishing.write_whole(str(path), {"a": "가"})
    with pytest.raises(TypeError):
        publishing.write_whole(str(path), {"a": 1, "b": object()})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "가"\n}'
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_who_does_not_wait_hears_that_another_is_writing(tmp_path):
    folder = str(tmp_path / "part")

    def write(temporary):
        assert publish(folder, lambda place: None, wait=False) is False

    assert publish(folder, write) is True
    assert publish(folder, write, wait=False) is True
