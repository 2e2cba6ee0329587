"""Definition and training of each family's demo model on latents of Fashion-MNIST."""
