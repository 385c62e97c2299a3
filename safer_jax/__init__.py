"""safer_jax: vision-language models that reason safely, trained in JAX. Start at train.py."""
