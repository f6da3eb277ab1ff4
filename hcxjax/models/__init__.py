"""The decoder, in Flax Linen; nothing above this package and `mesh` imports flax."""
