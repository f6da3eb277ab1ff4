"""Plans of a training run for a pod that is not there: what XLA compiles for it, and what arithmetic says of it."""
