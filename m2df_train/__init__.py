"""m2df training: few-shot heads on CLIP, episodes, training and evaluation."""
