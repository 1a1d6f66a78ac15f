"""What ``make gpu`` runs: checks, times and profiles of the kernels, in stages (run.py); one JSON per card.

``python -m benchmarks.gpu`` in a checkout. It starts with Python alone and imports torch and fastnest only in the
processes that it starts, because a kernel that faults takes its process's GPU context with it.
"""
