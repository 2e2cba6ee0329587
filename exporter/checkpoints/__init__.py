"""Opens untrusted checkpoints and tokenizers without executing what they contain."""
