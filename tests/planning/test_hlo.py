"""The texts here are of no compiler: as small as can be, with every form that a compiler's text takes."""

import jax
import jax.numpy as jnp
import pytest

from hcxjax.planning.hlo import Program, Shape

NESTED = """\
HloModule nested, is_scheduled=true, entry_computation_layout={(f32[8])->f32[8]}

%inner_body (p.0: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.0 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.0 = s32[] get-tuple-element(%p.0), index=0
  %two = s32[] constant(2)
  %copied = s32[] copy(%i.0)
  %next.0 = s32[] add(%copied, %two), metadata={op_name="a{b" stack_frame_id=1}
  %x.0 = f32[8] get-tuple-element(%p.0), index=1
  %twice = f32[8] fusion(%x.0), kind=kLoop, calls=%fused
  ROOT %t.0 = (s32[], f32[8]) tuple(%next.0, %twice)
}

%fused (p.9: f32[8]) -> f32[8] {
  %p.9 = f32[8] parameter(0)
  ROOT %sum.9 = f32[8] add(%p.9, %p.9)
}

%inner_cond (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], /*index=1*/f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%outer_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]) parameter(0)
  %x.2 = f32[8] get-tuple-element(%p.2), index=1
  %one = s32[] constant(1)
  %start = (s32[], f32[8]) tuple(%one, %x.2)
  %loop.2 = (s32[], f32[8]) while(%start), condition=%inner_cond, body=%inner_body
  ROOT %kept = (s32[], f32[8]) while(%loop.2), condition=%unknown_cond, body=%fused_pair
}

%fused_pair (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %p.3 = (s32[], f32[8]) parameter(0)
}

%unknown_cond (p.4: (s32[], f32[8])) -> pred[] {
  %p.4 = (s32[], f32[8]) parameter(0)
  ROOT %always = pred[] constant(true)
}

%never (p.5: f32[8]) -> f32[8] {
  ROOT %p.5 = f32[8] parameter(0)
}

ENTRY %main (arg: f32[8]) -> f32[8] {
  %arg = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8]) tuple(%zero, %arg)
  %outer = (s32[], f32[8]) while(%begin), condition=%c, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8] get-tuple-element(%outer), index=1
}
"""


@pytest.fixture(scope="module")
def nested():
    return Program.parse(NESTED)


def test_shapes_and_bytes(nested):
    assert nested.computations["inner_body"]["p.0"].shapes == (Shape("s32", ()), Shape("f32", (8,)))
    assert nested.computations["inner_cond"]["p.1"].shapes[1] == Shape("f32", (8,))
    assert [Shape(dtype, (3, 2)).size for dtype in ("f32", "bf16", "pred", "s4", "f8e4m3fn", "c64", "token")] == [
        24,
        12,
        6,
        3,
        6,
        48,
        0,
    ]
    assert Shape("f32", ()).size == 4


def test_attributes_are_read_whole(nested):
    step = nested.computations["inner_body"]["next.0"]
    assert step.operands == ("copied", "two") and step.source == "a{b" and nested.entry == "main"
    assert nested.computations["inner_cond"]["limit"].literal == "7"
    assert nested.root("outer_body").name == "kept"


def test_loops_turn_as_often_as_they_say_or_count(nested):
    body = nested.computations["outer_body"]
    assert nested.trips("main", nested.computations["main"]["outer"]) == 5
    assert nested.trips("outer_body", body["loop.2"]) == 3  # 1, 3, 5
    assert nested.trips("outer_body", body["kept"]) is None


def test_what_loops_run_is_multiplied(nested):
    executed = nested.executed()
    times = {run.instruction.name: run.times for run in executed.runs}
    assert (times["out"], times["loop.2"], times["twice"], times["sum.9"]) == (1, 5, 15, 15)
    assert executed.endless == ("kept",) and "never" in executed.unreached
    [twice] = [run for run in executed.runs if run.instruction.name == "twice"]
    assert twice.operand(0) == Shape("f32", (8,))


def test_texts_that_are_no_program():
    with pytest.raises(ValueError, match="no compiled program"):
        Program.parse("HloModule empty\n")


def test_what_a_compiled_scan_runs_and_lays_down():
    def total(x):
        return jnp.sum(jax.lax.scan(lambda carry, row: (jnp.sin(carry) + row, carry * 2), x[0], x)[1])

    program = Program.parse(jax.jit(total).lower(jnp.ones((6, 16))).compile().as_text())
    sines = [run.times for run in program.executed().runs if run.instruction.opcode == "sine"]
    assert sines == [6.0] and program.executed().endless == ()
    assert Shape("f32", (6, 16)) in [shape for _, shape in program.stacked(6)]
