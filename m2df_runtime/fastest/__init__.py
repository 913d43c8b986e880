"""Which engine runs a bundle fastest on this machine, of those that give the model's answers."""
