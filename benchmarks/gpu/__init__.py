"""What ``make gpu`` runs: install, the checks of tests/gpu, sanitizers, benchmarks; one JSON per card.

``python -m benchmarks.gpu`` in a checkout. It starts with Python alone and imports torch and fastnest only in the
processes that it starts, because a kernel that faults takes its process's GPU context with it.
"""
