"""Side-by-side timings of posttrain and its peers. `python -m benchmarks --help`, or `make bench`."""
