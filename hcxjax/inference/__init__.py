"""Writing: prefill and decode over an explicit key/value cache."""
