"""Cosines and sines of the rotary position embedding, for every RoPE type that config files name.

Frequencies are computed in fp32 with the operations of transformers, in its order, so that the
table has its bits; `kernels/rope.py` says how the table is used.
"""

import math

import torch

from tandem.model_config import ModelConfig, RopeScaling


def rotary_table(config: ModelConfig, num_positions: int) -> torch.Tensor:
    """fp32 [num_positions, head_dim]: cosines of the head_dim / 2 angles, then their sines."""
    frequencies = rotary_frequencies(config)
    angles = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * frequencies
    scale = config.rope_scaling.attention_factor
    return torch.cat((angles.cos() * scale, angles.sin() * scale), dim=1)


def rotary_frequencies(config: ModelConfig) -> torch.Tensor:
    """fp32 [head_dim / 2]: radians per position, scaled as `config.rope_scaling` says."""
    head_dim, scaling = config.head_dim, config.rope_scaling
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    periods: torch.Tensor = config.rope_theta**exponents
    frequencies = 1.0 / periods
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn(periods, config.rope_theta, scaling)
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths divided by the factor, short ones kept, interpolated between."""
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    smoothed = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, smoothed, scaled)


def _yarn(periods: torch.Tensor, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """A ramp over the dimensions from kept frequencies to those divided by the factor."""
    half = len(periods)

    def dimension(num_rotations: float) -> float:
        turns = scaling.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return half * math.log(turns) / math.log(theta)

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = 0.001 if low == high else high - low
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept
