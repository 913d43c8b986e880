"""Building TensorRT engines, and comparing them."""
