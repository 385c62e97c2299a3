"""Settings of every test: eight fake CPU devices, shapes checked at run time, flax in tree mode."""

import os
import tempfile

os.environ.setdefault("NNX_GRAPH_MODE", "false")
os.environ.setdefault("NNX_GRAPH_UPDATES", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test has compiled serves the others and their processes; the next session compiles anew.
COMPILED = tempfile.TemporaryDirectory(prefix="safer_jax_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping

jax.config.update("jax_num_cpu_devices", 8)
ARRAY_MODULES = ["safer_jax.grpo", "safer_jax.mesh", "safer_jax.model", "safer_jax.sampler", "safer_jax.state"]
jaxtyping.install_import_hook(ARRAY_MODULES, "beartype.beartype")
