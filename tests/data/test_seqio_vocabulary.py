import pytest

from hcxjax.data.seqio_vocabulary import seqio_vocabulary
from hcxjax.data.sources import import_seqio, import_tensorflow
from hcxjax.text.vocabulary import Vocabulary

TEXT = "학교에서 <|endoftext|> ▁ a\r\n\tb"


def test_a_task_encodes_as_the_vocabulary_does(vocabulary):
    seqio, tensorflow = import_seqio(), import_tensorflow()
    adapter = seqio_vocabulary(vocabulary)
    assert adapter.encode(TEXT) == vocabulary.encode(TEXT)
    assert adapter.decode(vocabulary.encode(TEXT)) == TEXT
    assert adapter.encode_tf(tensorflow.constant(TEXT)).numpy().tolist() == vocabulary.encode(TEXT)
    assert adapter.decode_tf(tensorflow.constant(vocabulary.encode(TEXT))).numpy().decode() == TEXT
    assert (adapter.eos_id, adapter.pad_id, adapter.vocab_size) == (vocabulary.end_of_text, 0, vocabulary.size)

    def texts(split, shuffle_files, seed=None):
        return tensorflow.data.Dataset.from_tensors({"targets": TEXT})

    task = seqio.Task(
        "seqio_vocabulary_test",
        source=seqio.FunctionDataSource(texts, splits=("train",)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(adapter)},
    )
    (example,) = task.get_dataset({"targets": 99}, split="train", shuffle=False).as_numpy_iterator()
    assert example["targets"].tolist() == [*vocabulary.encode(TEXT), vocabulary.end_of_text]


def test_equal_files_are_equal(vocabulary):
    assert seqio_vocabulary(vocabulary) == seqio_vocabulary(Vocabulary(vocabulary.path))
    assert hash(seqio_vocabulary(vocabulary)) == hash(seqio_vocabulary(vocabulary))


def test_padding_elsewhere_is_refused(vocabulary, monkeypatch):
    monkeypatch.setattr(vocabulary, "specials", {**vocabulary.specials, "<|pad|>": 7})
    with pytest.raises(ValueError, match="pads with 7; seqio pads with 0"):
        seqio_vocabulary(vocabulary)
