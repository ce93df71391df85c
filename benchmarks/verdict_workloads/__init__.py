"""What `benchmarks.verdicts` profiles: code as users write it, on generated data.

Every workload `name` is a function of one argument, which `name_input(n)` makes; `n` is the size, the same data each time.
A workload is safe to run repeatedly on the same input, takes about 0.2 to 2 s at its default size, and downloads nothing.
One module for each package, so that a missing package costs its own workloads only.
"""
