"""What every engine on an NVIDIA GPU needs: memory, streams, shapes, and loops that stay there."""
