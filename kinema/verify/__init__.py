"""Does a motion obey its law, is it distributed as it should be, and does a model know the law."""

from kinema.verify.conservative import (
    Gauged,
    GaugeReport,
    Projection,
    RandomFourier,
    asymmetry,
    gauge_error,
    gauge_field,
    project_conservative,
)
from kinema.verify.data_dimension import DataDimension, data_dimension
from kinema.verify.density_grid import flow_density, grid_wasserstein, noisy_density
from kinema.verify.dimension import DimensionReport, FlowJacobian, flipd, flow_jacobian, intrinsic_dimension
from kinema.verify.distances import (
    ClassifierTest,
    PermutationTest,
    classifier_two_sample,
    energy_distance,
    mmd,
    permutation_test,
    sliced_wasserstein,
)
from kinema.verify.divergence_bound import kl_bound, optimal_noise
from kinema.verify.fokker_planck import Gap, GapCertificate, gap_certificate, ode_sde_gap
from kinema.verify.generalization import (
    Conflict,
    Regime,
    VelocityError,
    conflict,
    draw,
    flip,
    gap,
    hole,
    regimes,
    velocity_error,
)
from kinema.verify.laws import LawErrors, laws, replay_error
from kinema.verify.lyapunov import (
    LyapunovReport,
    LyapunovTrace,
    lyapunov,
    lyapunov_trace,
    monitor_lion_k,
    optimality_gap,
    phase_probe,
)
from kinema.verify.table import law_table

__all__ = [
    "ClassifierTest",
    "Conflict",
    "DataDimension",
    "DimensionReport",
    "FlowJacobian",
    "Gap",
    "GapCertificate",
    "GaugeReport",
    "Gauged",
    "LawErrors",
    "LyapunovReport",
    "LyapunovTrace",
    "PermutationTest",
    "Projection",
    "RandomFourier",
    "Regime",
    "VelocityError",
    "asymmetry",
    "classifier_two_sample",
    "conflict",
    "data_dimension",
    "draw",
    "energy_distance",
    "flip",
    "flipd",
    "flow_density",
    "flow_jacobian",
    "gap",
    "gap_certificate",
    "gauge_error",
    "gauge_field",
    "grid_wasserstein",
    "hole",
    "intrinsic_dimension",
    "kl_bound",
    "law_table",
    "laws",
    "lyapunov",
    "lyapunov_trace",
    "mmd",
    "monitor_lion_k",
    "noisy_density",
    "ode_sde_gap",
    "optimal_noise",
    "optimality_gap",
    "permutation_test",
    "phase_probe",
    "project_conservative",
    "regimes",
    "replay_error",
    "sliced_wasserstein",
    "velocity_error",
]
