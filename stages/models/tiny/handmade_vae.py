"""A VAE of the real class whose weights are written by hand, so that the tiny model can see.

A picture of the demo comes back from it coarse but recognisable (about 30 dB for a smooth
one), where random weights would give noise. All residual branches are zero, so the network is
linear, and separable in rows and columns. For each of three colour axes and each block of
8x8 pixels the encoder keeps, per direction, a mean and a slope: 2x2 numbers, 12 in all; those
of the brightness are stored twice, which makes 16. Where the architecture has a SiLU, numbers
travel as x and -x, because silu(x) - silu(-x) = x; where it has an RMS norm, a large constant
beside them makes the norm constant too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

# Weights of the four half-resolution cells of a block, in 32nds. They and the three
# tables below are least-squares fits to lines with edges in one dimension, rounded.
MEAN, SLOPE = (7, 9, 9, 7), (-11, -5, 5, 11)
# From (mean, slope) to (mean, slope) at twice the resolution: the taps of a 3-wide kernel that
# follows nearest upsampling, in 32nds; [to][from][tap]. No slope comes from means: along the
# border the zero padding would look like an edge.
FINER = (
    (((-8, 48, -8), (10, 0, -10)), ((0, 0, 0), (-22, 26, -22))),
    (((13, 6, 13), (11, 0, -11)), ((0, 0, 0), (26, 10, 26))),
    (((10, 12, 10), (10, 0, -10)),),
)
UNIT = 32
# Brightness and two colour differences, from red, green and blue.
COLOUR_AXES = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]])
# Where the 2x2 numbers of each axis lie in drawings: centre, and spread of [row kind][column kind].
CENTRES = (0.42, -0.11, 0.03)
SPREADS = (
    ((0.44, 0.075), (0.075, 0.036)),
    ((0.24, 0.06), (0.06, 0.026)),
    ((0.09, 0.02), (0.02, 0.009)),
)
# Far above every number beside it (so that the norm hardly moves), and exact in bfloat16.
LOUD = 256.0
NEVER_SAMPLED_LOGVAR = -20.0
BASE_WIDTH = 8
LATENT_CHANNELS = 16
FEATURES = 12


def small_vae() -> Any:
    """Return a small VAE with the latent means and deviations of the real one."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=BASE_WIDTH,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def sighted_vae() -> Any:
    """Make the VAE; its latents, normalised, have about zero mean and unit spread on drawings."""
    vae = small_vae()
    with torch.no_grad():
        _silence(vae)
        _copy(vae.quant_conv)
        _copy(vae.post_quant_conv)
        _write_encoder(vae.encoder, _latent_scale(vae.config))
        _write_decoder(vae.decoder, _latent_scale(vae.config))
    return vae


def _silence(vae: nn.Module) -> None:
    """Zero everything but the norms; let what changes its width in a shortcut pass unchanged."""
    for name, parameter in vae.named_parameters():
        parameter.fill_(1.0 if name.endswith("gamma") else 0.0)
    for name, module in vae.named_modules():
        if name.endswith("conv_shortcut") and isinstance(module, nn.Conv3d):
            _copy(module)


def _latent_scale(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset (latent = feature * scale + offset) of all 16 channels.

    Once the VAE's own means and deviations are taken out, a feature is left with its centre
    taken out and divided by its spread.
    """
    spreads = np.array(SPREADS).reshape(FEATURES)
    centres = np.zeros((3, 4))
    centres[:, 0] = CENTRES
    twice = _feature_of_channel()
    spread = np.array(config.latents_std) / spreads[twice]
    return spread, np.array(config.latents_mean) - centres.reshape(FEATURES)[twice] * spread


def _feature_of_channel() -> np.ndarray:
    """Return each channel's feature; 12 to 15 repeat the brightness, as two copies err less."""
    return np.arange(LATENT_CHANNELS) % FEATURES


def _write_encoder(encoder: Any, scale: tuple[np.ndarray, np.ndarray]) -> None:
    halving = [layer.resample[1] for layer in encoder.down_blocks if hasattr(layer, "resample")]
    for axis, colour in np.ndindex(3, 3):
        _tap(encoder.conv_in, axis, colour, float(COLOUR_AXES[axis, colour]))
    for axis, row, column in np.ndindex(3, 2, 2):
        _tap(halving[0], axis, axis, 0.25, at=(row, column))
    # sums and differences of neighbouring cells: nothing is lost
    pairs = np.array([[1.0, 1.0], [-1.0, 1.0]])
    for axis, v, u, row, column in np.ndindex(3, 2, 2, 2, 2):
        value = pairs[v, row] * pairs[u, column]
        _tap(halving[1], 4 * axis + 2 * v + u, axis, value, at=(row, column))
    kept = _analysis()
    for axis, k, i, v, u, row, column in np.ndindex(3, 2, 2, 2, 2, 2, 2):
        to, value = 2 * (4 * axis + 2 * k + i), kept[k, v, row] * kept[i, u, column]
        for place, number in ((to, value), (to + 1, -value)):
            _tap(halving[2], place, 4 * axis + 2 * v + u, number, at=(row, column))
    halving[2].bias[2 * FEATURES] = LOUD
    encoder.norm_out.gamma.fill_(LOUD / encoder.norm_out.scale)
    spread, offset = scale
    for channel, feature in enumerate(map(int, _feature_of_channel())):
        _tap(encoder.conv_out, channel, 2 * feature, spread[channel])
        _tap(encoder.conv_out, channel, 2 * feature + 1, -spread[channel])
        encoder.conv_out.bias[channel] = offset[channel]
    encoder.conv_out.bias[LATENT_CHANNELS:] = NEVER_SAMPLED_LOGVAR


def _analysis() -> np.ndarray:
    """Return mean and slope of a block from (sum, difference) of its halves: [to][from][half]."""
    cells = np.array([MEAN, SLOPE]).reshape(2, 2, 2) / UNIT
    return np.stack([cells.sum(2), cells[:, :, 1] - cells[:, :, 0]], 1) / 2


def _write_decoder(decoder: Any, scale: tuple[np.ndarray, np.ndarray]) -> None:
    doubling = [block.upsamplers[0].resample[1] for block in decoder.up_blocks[:3]]
    spread, offset = scale
    features = _feature_of_channel()
    copies = np.bincount(features)
    for channel, feature in enumerate(map(int, features)):
        share = 1 / (copies[feature] * spread[channel])
        _tap(decoder.conv_in, feature, channel, share)
        decoder.conv_in.bias[feature] -= offset[channel] * share
    decoder.conv_in.bias[FEATURES] = LOUD
    for conv, table in zip(doubling[:2], FINER[:2], strict=True):
        for axis in range(3):
            _spread_out(conv, table, to=4 * axis, from_=4 * axis)
        _tap_smooth(conv, table, to=FEATURES)
    colours = np.linalg.inv(COLOUR_AXES)
    for colour, axis, sign in np.ndindex(3, 3, 2):
        value = -colours[colour, axis] if sign else colours[colour, axis]
        _spread_out(doubling[2], FINER[2], to=2 * colour + sign, from_=4 * axis, times=float(value))
    _tap_smooth(doubling[2], FINER[2], to=6)
    decoder.norm_out.gamma.fill_(LOUD / decoder.norm_out.scale)
    for colour in range(3):
        _tap(decoder.conv_out, colour, 2 * colour, 1.0)
        _tap(decoder.conv_out, colour, 2 * colour + 1, -1.0)


def _spread_out(conv: Any, table: Any, *, to: int, from_: int, times: float = 1.0) -> None:
    """Write the kernel of `table` in both directions for the 2x2 numbers of one colour axis."""
    finer = np.array(table) / UNIT
    kinds = len(finer)
    for k, i, v, u, row, column in np.ndindex(kinds, kinds, 2, 2, 3, 3):
        value = times * finer[k, v, row] * finer[i, u, column]
        _tap(conv, to + 2 * k + i, from_ + 2 * v + u, float(value), at=(row, column))


def _tap_smooth(conv: Any, table: Any, *, to: int) -> None:
    """Take the constant through the same kernel as a mean.

    What zero padding takes from the means along the border it takes from the constant as well,
    and the norm at the end divides the one by the other.
    """
    smooth = np.array(table[0][0]) / UNIT
    for row, column in np.ndindex(3, 3):
        _tap(conv, to, FEATURES, float(smooth[row] * smooth[column]), at=(row, column))


def _copy(conv: nn.Conv3d) -> None:
    """Let the channels of a 1x1 convolution pass as they are, as many as there are."""
    for channel in range(min(conv.in_channels, conv.out_channels)):
        _tap(conv, channel, channel, 1.0, at=(0, 0))


def _tap(conv: Any, to: int, from_: int, value: float, *, at: tuple[int, int] = (1, 1)) -> None:
    """Set one weight; in time it is the last tap, the one that sees the only frame."""
    weight = conv.weight[:, :, -1] if conv.weight.dim() == 5 else conv.weight
    weight[to, from_, at[0], at[1]] = value
