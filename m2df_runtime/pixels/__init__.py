"""What a model sees of a clip: region, channels, scale and crop."""
