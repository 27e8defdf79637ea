"""prts_jax: pretraining Llama models in JAX by growing them."""

__version__ = "0.1.0"
