"""The benchmarks, `python -m roadmap.bench NAME`. Every number that the project states comes from one of them."""
