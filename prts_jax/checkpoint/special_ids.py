"""Moved to prts_jax/special_ids.py, so that data_pipelines can import it; edit it there."""

from prts_jax.special_ids import *  # noqa: F403
