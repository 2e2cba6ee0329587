"""The demo model: a small MAR trained on Fashion-MNIST, and what DiSA does for it."""
