"""A bundle and a support bank as a model repository of Triton Inference Server."""
