"""From corpora to packed batches: readers, the tokenizer's training, the token store, packing and mixing."""
