"""An exported model as it is stored: manifest, files and their hashes, labels, tokenizer."""
