"""The autoencoder between latents and pixels."""
