"""The CLIP-M2DF and CLIP-FSAR models, module by module as the papers name them."""
