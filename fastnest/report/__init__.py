"""`fastnest report`: which of the paper's guarantees hold for a model and data, as one HTML page and one JSON."""
