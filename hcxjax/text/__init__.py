"""Vocabulary, morpheme boundaries and the order of fill-in-the-middle: text and token ids, without TensorFlow."""
