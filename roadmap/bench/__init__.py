"""The benchmarks: `python -m roadmap.bench NAME`. Each makes its own input and prints what it measured."""
