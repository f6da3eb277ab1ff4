"""hcxjax: the HyperCLOVA X system (NAVER, arXiv:2404.01954) as a JAX research codebase."""

__version__ = "0.1.0"
