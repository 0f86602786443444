"""Learning on data that stay with their clients: FedAvg and SCAFFOLD with momentum, simulated as one program."""

from kinema._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "client": [
            "ALL_RULES",
            "ClientRule",
            "fedavg",
            "fedavg_m",
            "fedavg_m_vr",
            "local_round",
            "scaffold",
            "scaffold_m",
            "scaffold_m_vr",
        ],
        "server": ["Server", "begin_server", "serve"],
        "simulation": ["FedResult", "Federated", "simulate"],
        "partition": ["Clients", "by_key", "dirichlet", "divide", "shards", "stacked"],
    },
)
