"""A GRPO step without its layout: each rollout a row of its own with its prompt and whole logits (array code)."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def whole_rows(asked, token_PGC, is_valid_PGC):
    """Rows as `hf.rows` makes them, one for each rollout: the prompt's ids, then the rollout's tokens without holes."""
    return [
        (np.concatenate([ids, token_C[is_valid_C]]), pixels, grids)
        for (ids, pixels, grids), token_GC, is_valid_GC in zip(asked, token_PGC, is_valid_PGC, strict=True)
        for token_C, is_valid_C in zip(token_GC, is_valid_GC, strict=True)
    ]


def slots_of(is_valid_PGC, slots):
    """Where the tokens of a completion stand in its left-padded row; holes get the last slot."""
    is_valid_BC = is_valid_PGC.reshape(-1, is_valid_PGC.shape[-1])
    length = is_valid_BC.sum(-1, keepdims=True)
    return np.where(is_valid_BC, slots - length + is_valid_BC.cumsum(-1) - 1, slots - 1)


def token_logp(graph, params, prompts, slot_BC, is_trained_BC, temperature, is_banned_V):
    """Log-probs of the tokens that train, 0 elsewhere. The model's own positions start at the row's first token."""
    model = nnx.merge(graph, params)
    hidden_BSD, _ = model.prefill(prompts)
    logits_BSV = hidden_BSD @ model.head_VD().T / temperature
    logp_BSV = jax.nn.log_softmax(jnp.where(is_banned_V, -jnp.inf, logits_BSV), -1)
    row_B1 = np.arange(len(slot_BC))[:, None]
    logp_BC = logp_BSV[row_B1, slot_BC - 1, jnp.where(is_trained_BC, prompts.token_PS[row_B1, slot_BC], hf.FIRST_TEXT)]
    return jnp.where(is_trained_BC, logp_BC, 0.0)


def weights(is_trained_BC, aggregation, max_tokens):
    """The share of each token in the loss, by loops."""
    weight = np.zeros(is_trained_BC.shape, np.float32)
    trained_rows = [row for row in range(len(weight)) if is_trained_BC[row].any()]
    for row in trained_rows:
        share = {
            "token_mean": is_trained_BC.sum(),
            "sequence_mean": len(trained_rows) * is_trained_BC[row].sum(),
            "constant": is_trained_BC.any(-1).size * max_tokens,
        }[aggregation]
        weight[row, is_trained_BC[row]] = 1 / share
    return weight


def objective(logp, old_logp, ref_logp, sampler_logp, advantage, weight, settings):
    """Clipped surrogate with truncated importance weights, and the k3 estimator of the KL."""
    ratio = jnp.exp(logp - old_logp)
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    correction = jnp.minimum(jnp.exp(old_logp - sampler_logp), settings.correction_cap)
    gap = ref_logp - logp
    return (weight * (settings.beta * (jnp.exp(gap) - gap - 1) - correction * surrogate)).sum()


class Plain:
    """Loss, gradient and log-probs in plain rows, compiled once. `asked` are the rows that the prompts were made of.

    The config's temperature, clips, beta and cap count; the other choices are those of `objective`.
    """

    def __init__(self, config, model_config, graph, asked, batch, is_banned_V):
        slots = batch.prompts.token_PS.shape[1] + batch.token_PGC.shape[-1]
        prompts = hf.collate(model_config, whole_rows(asked, batch.token_PGC, batch.is_valid_PGC), slots)
        prompts = jax.tree.map(jnp.asarray, prompts)
        slot_BC = slots_of(batch.is_valid_PGC, slots)

        def loss(params, is_trained_BC, others, weight_BC):
            temperature = config.sampler.temperature
            logp_BC = token_logp(graph, params, prompts, slot_BC, is_trained_BC, temperature, is_banned_V)
            return objective(logp_BC, *others, weight_BC, config.grpo), logp_BC

        # Compiled for few runs, so quickly.
        options = {"xla_backend_optimization_level": 0}
        self.loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)

    def update(self, params, batch, weight_BC, is_trained_PGC):
        """(loss, gradient, logp_PGC) of one update that trains these tokens."""
        is_trained_BC = rows_of(is_trained_PGC)
        others = (batch.old_logp_PGC, batch.ref_logp_PGC, batch.sampler_logp_PGC, batch.advantage_PGC)
        others = [np.where(is_trained_BC, rows_of(value), 0.0) for value in others]
        (loss, logp), gradient = self.loss_and_gradient(params, is_trained_BC, others, weight_BC)
        return float(loss), gradient, np.asarray(logp).reshape(is_trained_PGC.shape)

    def logp(self, params, batch):
        weight_BC = np.zeros(rows_of(batch.token_PGC).shape, np.float32)
        return self.update(params, batch, weight_BC, batch.is_trained_PGC)[2]

    def step(self, config, params, batch, lr):
        """(losses, gradients) of the step's minibatches, between which the parameters move down the gradient."""
        losses, gradients, parts = [], [], config.grpo.minibatches
        if parts == 1:
            batch = batch._replace(old_logp_PGC=self.logp(params, batch))
        for part in range(parts):
            is_chosen_P = np.arange(len(batch.token_PGC)) % parts == part
            is_trained_PGC = batch.is_trained_PGC & is_chosen_P[:, None, None]
            weight_BC = weights(rows_of(is_trained_PGC), config.grpo.aggregation, config.sampler.max_tokens)
            loss, gradient, _ = self.update(params, batch, weight_BC, is_trained_PGC)
            params = jax.tree.map(lambda x, step: x - lr * step, params, gradient)
            losses.append(loss)
            gradients.append(gradient)
        return losses, gradients


def rows_of(value_PGC):
    return value_PGC.reshape(-1, value_PGC.shape[-1])
