"""Fashion-MNIST: images, captions and latents."""
