import dataclasses
import re

from hcxjax.planning.report import bindings, candidates, report


def test_what_is_compiled_and_what_is_arithmetic_is_said(compiled, estimated):
    told, guessed = "\n".join(report(compiled)), "\n".join(report(estimated))
    assert "**Compiled** by jax" in told and "| temporaries | 0.00 | 0.0% | compiled |" in told
    assert "**Arithmetic**: nothing was compiled" in guessed and "compiled |" not in guessed
    for text in (told, guessed):
        assert "| parameters | 0.00 | 0.0% | by sharding, exact |" in text
        assert "least time of an update, arithmetic" in text and "Bounds, not measurements" in text


def test_no_bound_is_told_as_a_measurement(compiled, estimated):
    for plan in (compiled, estimated):
        text = "\n".join(report(plan, 1e9))
        for figure in re.findall(r"[^.]*MFU[^.]*\.", text):
            assert "at most" in figure
        assert "At most" in text and "at least" in text and "chip-hours" in text
    assert "chip-hours" not in "\n".join(report(estimated))


def test_a_plan_says_what_it_could_not_count(compiled):
    facts = dataclasses.replace(compiled.compiled, uncounted=("while.7",), moved_leaves=("params/embed",))
    text = "\n".join(report(dataclasses.replace(compiled, compiled=facts)))
    assert "Not counted, because they do not say what they do: while.7." in text
    assert "compiles again: params/embed." in text


def test_a_plan_that_does_not_fit_says_so(estimated):
    memory = dataclasses.replace(estimated.memory, temporaries=1e12)
    assert "**does not fit**, arithmetic" in "\n".join(report(dataclasses.replace(estimated, memory=memory)))


def test_candidates_and_bindings(estimated):
    lines = candidates([estimated], 7)
    assert lines[0].startswith("7 variants were estimated") and "| 1 x 2 x 2 x 1 x 2 | 4 | full |" in lines[-1]
    assert "--gin.Layout.fsdp=2" in bindings(estimated) and "--gin.ACCUMULATE=4" in bindings(estimated)
