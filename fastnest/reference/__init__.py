"""The definition of every op in plain torch: what the kernels are compared with, and what runs where no kernel does."""
