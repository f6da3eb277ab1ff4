"""A `Vocabulary` as seqio knows vocabularies, for Tasks of one's own."""

from collections.abc import Callable
from typing import Any

from hcxjax.data.sources import import_seqio, import_tensorflow
from hcxjax.text.vocabulary import PAD, UNKNOWN, Vocabulary


def seqio_vocabulary(vocabulary: Vocabulary) -> Any:
    """The seqio.Vocabulary of `vocabulary`: `seqio.Feature(seqio_vocabulary(...))`.

    seqio's end of sequence is end of text; text that spells a special stays text. Two of equal files are equal.

    Raises:
      ValueError: the vocabulary has no end of text, or its padding is not 0, which seqio fixes.
    """
    seqio, tensorflow = import_seqio(), import_tensorflow()
    specials = vocabulary.specials
    end = vocabulary.end_of_text
    if specials.get(PAD, 0) != 0:
        raise ValueError(f"{vocabulary.path!r} pads with {specials[PAD]}; seqio pads with 0")

    class Adapter(seqio.Vocabulary):
        """Encodes in Python, and in a TensorFlow graph through one."""

        def __init__(self) -> None:
            super().__init__(extra_ids=0)

        @property
        def bos_id(self) -> int | None:
            return None

        @property
        def eos_id(self) -> int:
            return end

        @property
        def unk_id(self) -> int | None:
            return specials.get(UNKNOWN)

        @property
        def _base_vocab_size(self) -> int:
            return vocabulary.size

        def _encode(self, s: str) -> list[int]:
            return vocabulary.encode(s)

        def _decode(self, ids: Any) -> str:
            return vocabulary.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            return _in_graph(lambda text: vocabulary.encode(text.decode()), s, tensorflow.int32, [None])

        def _decode_tf(self, ids: Any) -> Any:
            return _in_graph(lambda row: vocabulary.decode(row.tolist()), ids, tensorflow.string, [])

        def __eq__(self, other: object) -> bool:
            return getattr(other, "fingerprint", None) == vocabulary.fingerprint

        def __hash__(self) -> int:
            return hash(vocabulary.fingerprint)

        fingerprint = vocabulary.fingerprint

    return Adapter()


def _in_graph(call: Callable[[Any], Any], value: Any, dtype: Any, shape: list[int | None]) -> Any:
    """What Python makes of a tensor, inside a TensorFlow graph."""
    tensorflow = import_tensorflow()
    out = tensorflow.py_function(lambda tensor: tensorflow.constant(call(tensor.numpy()), dtype), [value], dtype)
    out.set_shape(shape)
    return out
