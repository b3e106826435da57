"""Opacus' engine for units: layers, optimizer and accountant from public constants alone."""

import warnings
from collections.abc import Mapping

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleHooks
from torch import nn

from client.privacy.layers import UnitEmbedding, UnitParameter
from client.privacy.noise import NoiseSource
from client.privacy.optimizer import UnitOptimizer
from common.errors import PrivacyError


class UnitPrivacyEngine(PrivacyEngine):  # type: ignore[misc] # Opacus has no types.
    """Makes :mod:`client.privacy.layers` private, and counts the steps that were taken.

    Opacus' own engine derives sample rate and batch size from ``len(dataset)``: the customer count,
    which is private (Opacus #571). Here both are arguments, and there is no data loader at all: the
    caller samples units by :meth:`NoiseSource.poisson_sample` at the rate that it states.

    Parameters
    ----------
    optimizer_class
        What clips and adds the noise.
    """

    def __init__(self, optimizer_class: type[UnitOptimizer] = UnitOptimizer) -> None:
        with warnings.catch_warnings():
            # Noise comes from a NoiseSource, never from Opacus' generators.
            warnings.filterwarnings("ignore", message="Secure RNG turned off")
            super().__init__(accountant="rdp")
        self._optimizer_class = optimizer_class

    def make_private(  # type: ignore[override,unused-ignore]
        self,
        *,
        layers: Mapping[str, UnitEmbedding | UnitParameter],
        optimizer: torch.optim.Optimizer,
        noise_multiplier: float,
        max_grad_norm: float,
        batch_normalizer: float,
        sample_rate: float,
        noise: NoiseSource | None,
        lazy: bool,
        data_loader: object = None,
    ) -> tuple[GradSampleHooks, UnitOptimizer]:
        """Return the hooks of the layers, and the private optimizer.

        Parameters
        ----------
        layers
            By name.
        optimizer
            A parameter group for each layer, with its ``name``.
        sample_rate
            Chance of a unit to be in a step: what the accountant is told.
        data_loader
            Refused: see above.

        Raises
        ------
        PrivacyError
            If a data loader is given.
        """
        if data_loader is not None:
            raise PrivacyError(
                "a data loader knows how many customers there are, and the sample rate must not: "
                "sample units from the noise source, at the plan's rate"
            )
        module = nn.ModuleList(layers.values())
        hooks = self._prepare_model(module, loss_reduction="sum", wrap_model=False)
        private = self._optimizer_class(
            optimizer,
            layers,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            batch_normalizer=batch_normalizer,
            noise=noise,
            lazy=lazy,
        )
        private.attach_step_hook(self.accountant.get_optimizer_hook_fn(sample_rate=sample_rate))
        return hooks, private
