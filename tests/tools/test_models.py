import keras
import pytest

from keras_bnx import BatchNormalization
from keras_bnx.tools.models import batch_normalizations

KERAS = keras.layers.BatchNormalization


class Block(keras.layers.Layer):
    def __init__(self, *layers):
        super().__init__()
        self.first, *rest = layers
        self.rest = {"rest": rest}

    def call(self, x):
        return x


def test_each_is_found_once_wherever_it_is():
    shared, *others = (BatchNormalization(), KERAS(), KERAS(), BatchNormalization())
    inner = keras.Sequential([keras.layers.Dense(2), shared, others[0]])
    model = keras.Sequential([inner, shared, Block(*others[1:])])
    found = batch_normalizations(model)
    assert sorted(map(id, found)) == sorted(map(id, (shared, *others)))
    assert batch_normalizations(shared) == [shared]


def test_they_come_in_the_order_in_which_they_are_held():
    class Held(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = KERAS(name="a")
            self.parts = [KERAS(name="b"), {"x": BatchNormalization(name="c")}]
            self.last = KERAS(name="d")

    inner = keras.Sequential([KERAS(name="e"), KERAS(name="f")])
    model = keras.Sequential([KERAS(name="0"), Held(), inner])
    assert [layer.name for layer in batch_normalizations(model)] == [*"0abcdef"]


def test_a_model_without_any_is_named():
    with pytest.raises(ValueError, match=r"no batch normalization.*plain"):
        batch_normalizations(keras.Sequential([keras.layers.Dense(2)], name="plain"))
