"""A transformer of the real class that begins by repeating its first reference.

A random transformer says nothing about pictures, and a LoRA cannot make it: the demo would
show noise. Here some weights are written by hand, so that the untrained model denoises
towards its first reference, as an editing model does that was told nothing, and what is left
to learn is the edit. The rest stays random: features of picture and instruction that a LoRA
can draw on.

The channels of the image stream: what the token shows (64), what the reference shows at the
same place (64), random features, and two loud constants, one the negative of the other, which
keep every layer norm nearly linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

HEADS = 6
HEAD_WIDTH = 32
LAYERS = 3
WIDTH = HEADS * HEAD_WIDTH
TOKEN = 64
SHOWN = slice(0, TOKEN)
COPIED = slice(TOKEN, 2 * TOKEN)
FEATURES = slice(2 * TOKEN, WIDTH - 2)
CONSTANTS = slice(WIDTH - 2, WIDTH)
# Layer norms divide by this, far above the spread of what is beside the constants.
LOUDNESS = 4.0
COPY_HEADS = slice(0, 2 * HEAD_WIDTH)
TEXT_HEADS = slice(2 * HEAD_WIDTH, WIDTH)
# Of random features beside what is shown, so that six additions of them stay below it.
QUIETNESS = 0.25
# Mean square by which a target is taken to differ from its reference, of latents with unit
# spread. It is far more in truth, but this is also the noise that is left in what the
# untrained model shows.
EDIT_VARIANCE = 0.05
# Knots in time, and how sharply the functions of time may bend there.
KNOTS = 16
SHARPNESS = 40.0
# Where diffusers' embedding of the timestep holds the sine of sigma itself.
SINE_OF_SIGMA = 224


def teach_to_copy(transformer: Any) -> None:
    """Write the weights named above into a randomly drawn `transformer` of this width."""
    with torch.no_grad():
        _take_in(transformer.img_in)
        for number, block in enumerate(transformer.transformer_blocks):
            _steady(block.img_mod[1])
            _look_around(block.attn)
            _keep_to_features(block.attn.to_out[0])
            if number == 0:
                block.attn.to_out[0].weight[COPIED, COPY_HEADS] = torch.eye(TOKEN)
            _deafen(block.img_mlp.net[0].proj)
            _keep_to_features(block.img_mlp.net[2])
        _tell_time(transformer.time_text_embed.timestep_embedder)
        _mix(transformer.norm_out.linear)
        _zero(transformer.proj_out)
        transformer.proj_out.weight[:, SHOWN] = torch.eye(TOKEN)
        transformer.proj_out.weight[:, COPIED] = -torch.eye(TOKEN)


def _zero(*linears: Any, channels: slice = slice(None)) -> None:
    """Zero the weights and the biases of these outputs of `linears`."""
    for linear in linears:
        linear.weight[channels] = 0.0
        linear.bias[channels] = 0.0


def _take_in(linear: Any) -> None:
    linear.bias.zero_()
    linear.weight[SHOWN] = torch.eye(TOKEN)
    linear.weight[COPIED] = 0.0
    linear.weight[CONSTANTS] = 0.0
    constant = LOUDNESS * (WIDTH / 2) ** 0.5
    linear.bias[CONSTANTS] = torch.tensor([constant, -constant])


def _steady(modulation: Any) -> None:
    """Undo the layer norm's division, let everything through, at every time."""
    shift, scale, gate = 0.0, LOUDNESS - 1, 1.0
    modulation.weight.zero_()
    modulation.bias[:] = torch.tensor([shift, scale, gate] * 2).repeat_interleave(WIDTH)


def _keep_to_features(linear: Any) -> None:
    linear.weight *= QUIETNESS
    for channels in (SHOWN, COPIED, CONSTANTS):
        _zero(linear, channels=channels)


def _deafen(linear: Any) -> None:
    """Zero the weights on the constant channels, which are large."""
    linear.weight[:, CONSTANTS] = 0.0


# -- attention -------------------------------------------------------------------------


def _look_around(attention: Any) -> None:
    """Let two heads attend to the same place of the next picture, the others to the text.

    Queries and keys of these kinds are constants; the rotary embedding turns them into
    a function of the distance between two tokens. Head width 32 is 8 numbers for the frame, 12
    for the row and 12 for the column, in pairs that turn by 1, 10000^(-1/4)... radians a step.
    """
    query, key = _same_place_next_picture()
    listener = _anywhere()
    queries_and_keys = attention.to_q, attention.to_k, attention.add_q_proj, attention.add_k_proj
    _zero(*queries_and_keys, attention.to_v, channels=COPY_HEADS)
    attention.to_q.weight[TEXT_HEADS] *= 0.25
    attention.to_k.weight[TEXT_HEADS] = 0.0
    attention.to_q.bias[:] = torch.cat([query.repeat(2), listener.repeat(HEADS - 2)])
    attention.to_k.bias[:] = torch.cat([key.repeat(2), -listener.repeat(HEADS - 2)])
    attention.add_k_proj.weight[TEXT_HEADS] *= 0.5
    attention.add_k_proj.bias[TEXT_HEADS] = listener.repeat(HEADS - 2)
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        _deafen(linear)
    attention.to_v.weight[COPY_HEADS, SHOWN] = torch.eye(TOKEN)
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(2.7)


def _same_place_next_picture() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a query and a key that agree best one frame on, in the same row and column."""
    shares = np.zeros(HEAD_WIDTH // 2)
    shares[0] = 8.0  # frame, 1 radian a step
    for axis in (4, 10):
        shares[axis : axis + 2] = 10.0, 5.0  # row and column, 1 and 0.2 radian a step
    amplitudes = np.sqrt(shares)
    key = np.stack([amplitudes, np.zeros_like(amplitudes)], 1)
    query = key.copy()
    query[0] = amplitudes[0] * np.array([np.cos(1.0), np.sin(1.0)])
    return torch.from_numpy(query.ravel()).float(), torch.from_numpy(key.ravel()).float()


def _anywhere() -> torch.Tensor:
    """Return a constant in the pairs that hardly rotate, so that position does not matter."""
    vector = torch.zeros(HEAD_WIDTH)
    vector[[6, 18, 30]] = 2.0
    return vector


# -- time ------------------------------------------------------------------------------


def _tell_time(embedder: Any) -> None:
    """Make the first channels of the time embedding smooth functions of sigma, others zero."""
    _zero(embedder.linear_1, embedder.linear_2)
    embedder.linear_1.weight[:KNOTS, SINE_OF_SIGMA] = SHARPNESS
    embedder.linear_1.bias[:KNOTS] = torch.from_numpy(-SHARPNESS * np.sin(_knots())).float()
    embedder.linear_2.weight[:KNOTS, :KNOTS] = torch.eye(KNOTS) / SHARPNESS


def _mix(linear: Any) -> None:
    """Let the final norm weigh noisy picture and reference as the best linear estimate does.

    The velocity is (x_t - x0) / sigma. x0 is estimated from x_t / (1 - sigma), whose error has
    variance sigma^2 / (1 - sigma)^2, and from the reference, whose error has EDIT_VARIANCE.
    """
    sigma = np.linspace(0.001, 1, 1000)
    clear = EDIT_VARIANCE * (1 - sigma) ** 2
    trust = clear / (clear + sigma**2)  # in x_t; times 1 / (1 - sigma), without dividing by 0
    of_noisy = (1 - EDIT_VARIANCE * (1 - sigma) / (clear + sigma**2)) / sigma
    of_reference = (1 - trust) / sigma
    _zero(linear)
    linear.bias[:WIDTH] = -1.0  # the norm multiplies by 1 + scale
    for channels, weight in ((SHOWN, of_noisy), (COPIED, of_reference)):
        slopes, start = _as_function_of_time(sigma, LOUDNESS * weight)
        linear.weight[channels, :KNOTS] = slopes
        linear.bias[channels] += start


def _as_function_of_time(sigma: np.ndarray, wanted: np.ndarray) -> tuple[torch.Tensor, float]:
    """Return weights on the time embedding (after SiLU) and a bias closest to `wanted`."""
    known = _silu(_silu(SHARPNESS * (np.sin(sigma)[:, None] - np.sin(_knots()))) / SHARPNESS)
    known = np.concatenate([known, np.ones((len(sigma), 1))], 1)
    solution = np.linalg.solve(known.T @ known + 1e-3 * np.eye(KNOTS + 1), known.T @ wanted)
    # rounded, so that the linear algebra library at hand leaves no trace
    rounded = np.round(solution * 256) / 256
    return torch.from_numpy(rounded[:-1]).float(), float(rounded[-1])


def _knots() -> np.ndarray:
    return np.arange(KNOTS) / KNOTS


def _silu(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = values / (1 + np.exp(-values))
    return result
