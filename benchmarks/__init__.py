"""Benchmarks of fastnest against plain torch, installed as ``fastnest.benchmarks``.

``pytest benchmarks`` times them one by one; ``fastnest bench`` runs the same contestants interleaved, as shipped
and fair, and writes the JSON that the README's tables come from.
"""
