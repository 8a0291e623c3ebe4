"""Measures of a dub, for people who change the model or the chain: ``python -m benchmarks NAME --help``; see README.md."""
