"""Exchange with Hugging Face: configurations, tensors and tokenizers, both ways; no code of a checkpoint is run."""
