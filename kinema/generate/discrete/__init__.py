"""Laws of discrete variables: x (length,) of categories 0 .. K - 1, some known and some not."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "orders": ["known_first", "random_order", "symbols"],
        "marginalization": [
            "MarginalModel",
            "any_order_loss",
            "gibbs_refresh",
            "log_prob_by_order",
            "order_consistency_loss",
            "sample_any_order",
            "self_consistency_loss",
        ],
        "trunks": ["MarginalMLP"],
        "energy": ["EnergyFit", "energy_loss", "fit_energy"],
        "likelihood": ["MarginalFit", "fit_marginals"],
        "ising": ["Ising"],
        "strings": ["Strings"],
        "masking": ["MaskedModel", "MaskedPath", "masked_loss", "masked_nelbo"],
        "masked_networks": ["masked_mlp", "masked_transformer"],
        "masked_exact": ["ancestral_law", "parallel_law", "table_model"],
        "first_hitting": ["sample_masked"],
        "truncation": ["effective_temperature", "one_stage_law", "truncated_law", "unigram_entropy"],
        "enumeration": ["all_states", "log_marginal_of_table", "order_table"],
    },
)
