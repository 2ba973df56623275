"""Curiosity's network: an ensemble of small MLPs that predict what an action will show (algorithms.md, section 2).

A forward model `f_k(e_t, a_t) -> e_hat_{t+1}` of features, as in Pathak et al. (https://arxiv.org/abs/1705.05363). What its
heads disagree about is what can still be learned (Pathak et al., https://arxiv.org/abs/1906.04161); its plain error also counts
what nobody can predict.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixelis_jax.losses.averages import weighted_mean

DynamicsParams = dict[str, dict[str, Array]]
"""`hidden` and `output`, each with a `kernel [K, in, out]` and a `bias [K, out]`: a head an entry of the first axis."""


def init_dynamics(key: Array, features: int, actions: int, *, heads: int = 4, hidden: int = 128) -> DynamicsParams:
    """Draws the parameters, those of each head on their own: heads that began alike would stay alike.

    Args:
      key: of jax.random.
      features: width D of the features.
      actions: width A of the actions.
      heads: number K of heads.
      hidden: width of the hidden layer.

    Returns:
      Float32 parameters.
    """
    keys = jax.random.split(key)

    def layer(key: Array, gain: float, fan_in: int, fan_out: int) -> dict[str, Array]:
        initializer = jax.nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal", batch_axis=(0,))
        return {"kernel": initializer(key, (heads, fan_in, fan_out), jnp.float32), "bias": jnp.zeros((heads, fan_out))}

    # The rectifier halves the variance that passes it.
    return {"hidden": layer(keys[0], 2.0, features + actions, hidden), "output": layer(keys[1], 1.0, hidden, features)}


def predict_features(
    params: DynamicsParams, features: Float[Array, "*n D"], actions: Float[Array, "*n A"]
) -> Float[Array, "K *n D"]:
    """Predicts the features of the next observation, once a head.

    Args:
      params: of `init_dynamics`.
      features: of the observation before the action.
      actions: one-hot operation, arguments and their mask.

    Returns:
      The predictions.
    """
    chex.assert_equal_shape_prefix([features, actions], features.ndim - 1)
    inputs = jnp.concatenate([features, actions], axis=-1)

    def head(params: DynamicsParams) -> Array:
        hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["output"]["kernel"] + params["output"]["bias"]

    return jax.vmap(head)(params)


def prediction_error(predictions: Float[Array, "K *n D"], targets: Float[Array, "*n D"]) -> Float[Array, "*n"]:
    """Squared error summed over the features, mean over the heads.

    Args:
      predictions: of `predict_features`.
      targets: features of the observation that came.

    Returns:
      One error an action.
    """
    chex.assert_equal_shape([predictions[0], targets])
    return jnp.mean(jnp.sum(jnp.square(predictions - targets), axis=-1), axis=0)


def disagreement(predictions: Float[Array, "K *n D"]) -> Float[Array, "*n"]:
    """Variance over the heads, summed over the features.

    Args:
      predictions: of `predict_features`.

    Returns:
      One variance an action.
    """
    return jnp.sum(jnp.var(predictions, axis=0), axis=-1)


def dynamics_loss(
    params: DynamicsParams,
    features: Float[Array, "*n D"],
    actions: Float[Array, "*n A"],
    targets: Float[Array, "*n D"],
    weights: Float[Array, "*n"],
) -> Float[Array, ""]:
    """Weighted mean of `prediction_error`.

    Args:
      params: of `init_dynamics`.
      features: of the observations before the actions.
      actions: as in `predict_features`.
      targets: features of the observations that came.
      weights: of each action, not negative; 0 for padding, whose rows hold anything finite.

    Returns:
      The loss; 0 where no action has a weight.
    """
    return weighted_mean(prediction_error(predict_features(params, features, actions), targets), weights)
