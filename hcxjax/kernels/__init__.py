"""Attention kernels: one function, several backends, and the float32 reference they are judged by."""
