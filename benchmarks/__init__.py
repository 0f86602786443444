"""Speed beside the peers: `python -m benchmarks`. Not part of the package."""
