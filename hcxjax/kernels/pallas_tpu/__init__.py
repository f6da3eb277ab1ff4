"""Attention on TPU: kernels that visit the tiles of the plan and no others."""
