"""`m2df-export verify`: where, between a clip and its scores, a bundle leaves its reference."""
