import jax
import jax.numpy as jnp
import pytest

from hcxjax.shapes import shaped, suffix


@pytest.mark.parametrize(
    ("name", "letters"), [("q_BTNH", "BTNH"), ("scale", None), ("x_B", "B"), ("Q_b", None), ("loss_BT_sum", None)]
)
def test_suffix(name, letters):
    assert suffix(name) == letters


@shaped
def mix(x_BT, w_TD, scale=1.0, *, bias_D=None):
    """Weighs."""
    return x_BT @ w_TD * scale + (0 if bias_D is None else bias_D)


def test_right_shapes_pass_and_the_function_keeps_its_name():
    assert mix(jnp.ones((2, 3)), jnp.ones((3, 4)), bias_D=jnp.ones(4)).shape == (2, 4)
    assert (mix.__name__, mix.__doc__) == ("mix", "Weighs.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_BT": (2,), "w_TD": (3, 4)}, r"mix: x_BT has shape \(2,\), its name says 2 dimensions"),
        ({"x_BT": (2, 3), "w_TD": (5, 4)}, r"mix: T is 5 in w_TD of shape \(5, 4\), but 3 in x_BT"),
        ({"x_BT": (2, 3), "w_TD": (3, 4), "bias_D": (3,)}, r"mix: D is 3 in bias_D of shape \(3,\), but 4 in w_TD"),
    ],
)
def test_wrong_shapes_name_the_argument_and_the_letter(arguments, message):
    with pytest.raises(ValueError, match=message):
        mix(**{name: jnp.ones(shape) for name, shape in arguments.items()})


def test_one_letter_twice_in_a_name_is_one_size():
    @shaped
    def trace(x_TT):
        return x_TT

    with pytest.raises(ValueError, match="T is 3 in x_TT"):
        trace(jnp.ones((2, 3)))


def test_checked_while_tracing():
    with pytest.raises(ValueError, match="but 3 in x_BT"):
        jax.eval_shape(mix, jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((2, 2), "float32"))
