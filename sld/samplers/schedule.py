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
        alpha_bar: (T,), falling in (0, 1), or to 0 where the terminal SNR is 0.
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
        if config.beta_schedule == "linear":
            beta = torch.linspace(config.beta_start, config.beta_end, config.steps, dtype=dtype)
        else:
            beta = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps, dtype=dtype) ** 2
        alpha_bar = torch.cumprod(1 - (zero_terminal(beta) if config.zero_terminal_snr else beta), 0)
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
        sigma = self._sigmas()
        low = at.long().clamp(max=len(self) - 2)
        return 1 / (1 + sigma.take(low).lerp(sigma.take(low + 1), at - low) ** 2)

    def karras(self, noisiest: float, cleanest: float, steps: int) -> tuple[tuple[float, ...], Tensor]:
        """Levels whose sigma is evenly spaced in its seventh root (Karras et al., arXiv 2206.00364, Eq. 5).

        Args:
            noisiest, cleanest: timesteps in [0, T - 1], whose sigmas are the first and the last.
            steps: number of levels, at least 1.

        Returns:
            Fractional timesteps, falling, at which the schedule has these sigmas if their logarithm is interpolated, as
            diffusers does; and what `path_to_x0` gives of the levels, (steps + 1,) in float64.
        """
        table = self._sigmas()
        first, last = (self._sigma(t) ** (1 / 7) for t in (noisiest, cleanest))
        sigma = (first + torch.linspace(0, 1, steps, dtype=torch.float64, device=table.device) * (last - first)) ** 7
        log, known = sigma.log(), table.log()
        low = (torch.searchsorted(known, log, right=True) - 1).clamp(0, len(self) - 2)
        share = (log - known[low]) / (known[low + 1] - known[low])
        alpha_bar = 1 / (1 + sigma**2)
        return tuple((low + share.clamp(0, 1)).tolist()), torch.cat([alpha_bar, torch.ones_like(alpha_bar[:1])])

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

    def _sigmas(self) -> Tensor:
        """The table's sigmas (T,), float64. At a terminal SNR of 0 the last is that of diffusers, not infinite."""
        return to_sigma(self.alpha_bar.double().clamp(min=2**-24))

    def _sigma(self, t: float) -> Tensor:
        return to_sigma(self.interpolated(t))


def to_sigma(alpha_bar: Tensor) -> Tensor:
    """k-diffusion's sigma, the ratio of noise to signal, any shape."""
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def zero_terminal(beta: Tensor) -> Tensor:
    """Return the betas (T,) whose signal is shifted to 0 at the last timestep, and scaled to stay at the first."""
    signal = torch.cumprod(1 - beta, 0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    alpha_bar = ((signal - last) * (first / (first - last))) ** 2  # Lin et al., Alg. 1
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
