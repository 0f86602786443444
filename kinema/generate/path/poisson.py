"""PFGM++: Poisson flows with D extra dimensions, from electrostatics (D = 1) to diffusion (D infinite).

Charges on the plane z = 0 of R^(N + D) give, at the radius r = sigma sqrt(D) of the extra coordinates, the kernel
p(x | y) ~ (|x - y|^2 + r^2)^(-(N + D) / 2): the Student-t law with D degrees of freedom, location y and scale sigma. So
the path is that of EDM with another noise, and every setting of EDM carries over at the same sigma.

Reference: Xu, Liu, Tian, Tong, Tegmark, Jaakkola 2023.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from kinema.errors import InputError
from kinema.generate.noise import NoiseLaw, Normal, StudentT
from kinema.generate.path.gaussian import EDM

PRECONDITIONINGS = ("edm", "moment")


class PoissonFlow(EDM):
    """The path of PFGM++: EDM's coefficients with Student-t noise of `D` degrees of freedom; `D = inf` is EDM itself.

    `D` need not be whole. Published sweet spots are N / 24 to 2 N / 3 for N data dimensions. `preconditioning` is the
    scale by which a network sees x: "edm" supposes noise of unit variance, "moment" takes the true D / (D - 2).

    Raises:
        InputError: D not positive; not 0 < sigma_min < sigma_max; rho < 1; an unknown preconditioning, or "moment" with
            D <= 2, where the variance is infinite.
    """

    D: float = eqx.field(static=True, default=128.0)
    preconditioning: str = eqx.field(static=True, default="edm")
    noise: NoiseLaw = eqx.field(init=False)

    def __post_init__(self):
        if not self.D > 0:
            raise InputError(f"D must be positive (inf is diffusion), got {self.D}")
        self.noise = Normal() if math.isinf(self.D) else StudentT(float(self.D))

    def __check_init__(self):
        if self.preconditioning not in PRECONDITIONINGS:
            raise InputError(f"preconditioning must be one of {PRECONDITIONINGS}, got {self.preconditioning!r}")
        if self.preconditioning == "moment" and not self.D > 2:
            raise InputError(f"preconditioning='moment' needs D > 2: at D={self.D:g} the noise has no variance")

    @classmethod
    def align(cls, path: EDM, D: float) -> "PoissonFlow":
        """The path with the noise levels of an EDM path, so that a network and its settings carry over."""
        return cls(sigma_min=path.sigma_min, sigma_max=path.sigma_max, rho=path.rho, D=D)

    def input_scale(self, t, sigma_data: float) -> Array:
        if self.preconditioning == "edm" or math.isinf(self.D):
            return super().input_scale(t, sigma_data)
        variance = self.D / (self.D - 2)
        return 1 / jnp.sqrt(sigma_data**2 + variance * self.coefficients(t)[2] ** 2)
