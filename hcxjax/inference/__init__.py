"""The engine that writes: prefill and decode over an explicit key/value cache, many requests at once."""
