"""Whether what was exported computes what PyTorch computes."""
