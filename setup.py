"""Installs hcxjax: `pip install -e .[test]`."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = [
    line for line in Path(__file__).with_name("requirements.txt").read_text().splitlines() if line and line[0] != "#"
]

setup(
    name="hcxjax",
    version="0.1.0",
    description="HyperCLOVA X in JAX: a Korean-first language model from raw text to chat",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hcxjax", "hcxjax.*", "tasks", "tools"]),
    package_data={
        "hcxjax.data.cleaning": ["lexicons/*.txt"],
        "hcxjax.evaluation": ["instructions.jsonl"],
        "hcxjax.text.pretrained": ["*.model", "*.json", "*.md"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "pyright[nodejs]>=1.1.390",
            "apache-beam>=2.70",
            "matplotlib>=3.8",
            "tiktoken>=0.9",
            "tokenizers>=0.21",
            "starlette>=0.46",
            "uvicorn>=0.34",
            "prometheus_client>=0.20",
            "openai>=1.60",
            "qwix>=0.1.8",
            # The parity tests compare with transformers' own arithmetic; pip's build for CPUs is enough.
            "torch==2.13.0",
            "transformers>=5.0",
        ],
        # Training with eight-bit matmuls, DecoderConfig.matmuls.
        "low-precision": ["qwix>=0.1.8"],
        "plots": ["matplotlib>=3.8"],
        # libtpu, for tools/plan.py: it compiles for TPUs without one. Google Cloud's terms of use apply to it.
        "tpu": ["jax[tpu]>=0.10.2"],
        "mlflow": ["mlflow>=3.0"],
        "beam": ["apache-beam>=2.70"],
        # The OpenAI-compatible server, tools/serve.py.
        "serve": ["starlette>=0.46", "uvicorn>=0.34", "prometheus_client>=0.20"],
        # Vocabularies in Hugging Face's tokenizer.json.
        "huggingface": ["tokenizers>=0.21"],
        # Peers of tools/tokenizer_report.py, and the English word list that gin/tokenizers/hcxjax-100k.gin names.
        "tokenizer": ["tokenizers>=0.21", "tiktoken>=0.9", "symspellpy>=6.9", "matplotlib>=3.8"],
        # Peers that tools/bench.py times beside our own; CPU builds of torch are enough.
        # TRL 1.12.0 is the last that has a PPO with a critic; torch 2.13.0 is what it was measured with.
        "bench": ["torch==2.13.0", "transformers>=5.0", "trl==1.12.0", "requests>=2.32"],
    },
)
