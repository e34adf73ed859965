"""The noise schedule of Stable Diffusion: a process of unit variance, given by a table of alpha_bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sld.config import Prediction, ScheduleConfig
from sld.samplers.process import Level, Process


@dataclass(frozen=True, eq=False)
class Schedule(Process):
    """The noise schedule of a model.

    Attributes:
        alpha_bar: (T,), falling in (0, 1).
        final_alpha_bar: 0-d, where DDIM and PNDM arrive past their last timestep.
        prediction: what the network predicts, eps or v.
        steps_offset: added to every leading timestep.
    """

    alpha_bar: Tensor
    final_alpha_bar: Tensor
    prediction: Prediction
    steps_offset: int

    @classmethod
    def from_config(cls, config: ScheduleConfig, dtype: torch.dtype = torch.float32) -> Schedule:
        """The schedule that `config` describes, in float32 bit-equal to the one in diffusers' schedulers."""
        root_beta = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps, dtype=dtype)
        alpha_bar = torch.cumprod(1 - root_beta**2, 0)
        final = torch.ones_like(alpha_bar[0]) if config.final_alpha_one else alpha_bar[0]
        return cls(alpha_bar, final, config.prediction, config.steps_offset)

    def __len__(self) -> int:
        """Number of training timesteps T."""
        return len(self.alpha_bar)

    def to(self, device: torch.device | str) -> Schedule:
        """Return the same schedule on `device`."""
        return replace(self, alpha_bar=self.alpha_bar.to(device), final_alpha_bar=self.final_alpha_bar.to(device))

    def level(self, t: float | Tensor) -> Level:
        """Return the level at timestep t in [0, T - 1], in the shape of t.

        Whole numbers, int or integer tensors, read the table. Floats and floating-point tensors lie between its
        entries, even where their values are whole, and see `interpolated`.
        """
        whole = not t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, int)
        if whole:
            at = torch.as_tensor(t, device=self.alpha_bar.device)
            return Level.of(self.alpha_bar.gather(0, at.reshape(-1)).reshape(at.shape))
        return Level._make(part.to(self.alpha_bar.dtype) for part in Level.of(self.interpolated(t)))

    def interpolated(self, t: float | Tensor | Sequence[float]) -> Tensor:
        """The alpha_bar at whole or fractional timesteps in [0, T - 1], float64, in the shape of t.

        What is interpolated linearly is sigma, as in diffusers' schedulers of the k-diffusion family.
        """
        at = torch.as_tensor(t, dtype=torch.float64, device=self.alpha_bar.device)
        sigma = to_sigma(self.alpha_bar.double())
        low = at.long().clamp(max=len(self) - 2)
        return 1 / (1 + sigma.take(low).lerp(sigma.take(low + 1), at - low) ** 2)

    def path(self, timesteps: Sequence[float]) -> Tensor:
        """The alpha_bar visited by DDIM and PNDM, (n + 1,): at n timesteps, then the final one."""
        whole = [t for t in timesteps if isinstance(t, int)]
        in_table = len(whole) == len(timesteps)
        visited = self.alpha_bar[whole] if in_table else self.interpolated(timesteps).to(self.alpha_bar.dtype)
        return torch.cat([visited, self.final_alpha_bar.reshape(1)])

    def path_to_x0(self, timesteps: Sequence[float]) -> Tensor:
        """The alpha_bar visited by the other samplers, (n + 1,) in float64: at n timesteps, then 1 (sigma = 0)."""
        alpha_bar = self.interpolated(timesteps)
        return torch.cat([alpha_bar, torch.ones_like(alpha_bar[:1])])


def to_sigma(alpha_bar: Tensor) -> Tensor:
    """k-diffusion's sigma, the ratio of noise to signal, any shape."""
    return ((1 - alpha_bar) / alpha_bar) ** 0.5
