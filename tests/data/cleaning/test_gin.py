"""The shipped cleaning is what its gin file says, and every step of it can be sent to another process."""

import pickle
from pathlib import Path

import pytest

from hcxjax.data.cleaning.overlap import BenchmarkOverlap
from hcxjax.data.cleaning.personal import PersonalData
from hcxjax.data.cleaning.repetition import Repetition
from hcxjax.data.cleaning.steps import clean
from hcxjax.main import configure, main_job

ROOT = Path(__file__).resolve().parents[3]


def steps(name):
    import gin

    configure([str(ROOT / "tests/tiny.gin")], ["RUN_DIR=/nowhere"])  # registers the parts
    gin.clear_config()
    gin.parse_config_files_and_bindings(
        [str(ROOT / "gin/tasks/cleaning.gin")], ["EVALUATION_SETS = ()", f"main.job = %{name}_CLEANING"]
    )
    return gin.get_configurable(main_job)()


@pytest.mark.parametrize(("name", "count"), [("KOREAN", 12), ("ENGLISH", 13), ("CODE", 4)])
def test_macros_are_tuples_of_steps(name, count):
    some = steps(name)
    assert len(some) == count
    assert BenchmarkOverlap() in some and isinstance(some[-1], PersonalData)
    assert pickle.loads(pickle.dumps(some)) == some
    assert clean(some, "ì•ˆë…•" * 9).dropped == "mojibake"


def test_korean_may_repeat_more_than_english():
    limits = [next(step for step in steps(name) if isinstance(step, Repetition)) for name in ("KOREAN", "ENGLISH")]
    assert limits[1] == Repetition()
    assert limits[0] == Repetition(repeated=tuple(2 * limit for limit in Repetition().repeated))
